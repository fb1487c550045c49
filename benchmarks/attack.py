"""Seconds of the attack per instance, on the instances of ../shared/benchmarks (or another folder of that form).

    python benchmarks/attack.py --family mnist_fc --expected sat
    python benchmarks/attack.py --steps 100 --restarts 30 --plain --no-early-stop --family mnist_fc

Columns, in seconds: read (network and property), attack (with confirmation), cpu (of that); then restarts begun,
gradient steps, worst row of the best point. A counterexample for an instance that is known to hold ends the run with
exit code 1; a network that cannot be read is named and passed over.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from auto_LiRPA.errors import UserError  # noqa: E402
from auto_LiRPA.graph.ir import Graph  # noqa: E402
from auto_LiRPA.graph.onnx_reader import read_onnx  # noqa: E402
from auto_LiRPA.parallel.store import LocalStore  # noqa: E402
from complete_verifier.attack.search import find_counterexample  # noqa: E402
from complete_verifier.attack.settings import AttackSettings  # noqa: E402
from complete_verifier.spec.compile import read_vnnlib  # noqa: E402
from complete_verifier.spec.property import Property  # noqa: E402


def main() -> int:
    """Attacks every chosen instance; 1 if a property that holds was refuted."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    settings = AttackSettings(
        steps=arguments.steps,
        restarts=arguments.restarts,
        seed=arguments.seed,
        mode=arguments.mode,
        early_stop=not arguments.no_early_stop,
        scouting=not arguments.plain,
    )
    rows = list(csv.DictReader((arguments.folder / "expected.csv").open()))
    if arguments.family:
        rows = [row for row in rows if row["family"] in arguments.family]
    if arguments.expected:
        rows = [row for row in rows if row["expected"] == arguments.expected]
    wrong = found = sat = 0
    print(f"{'instance':78s} expected  read  attack    cpu  result  restarts steps worst row")
    for row in rows:
        name = f"{row['family']} {Path(row['onnx']).stem} {Path(row['vnnlib']).stem}"
        folder = arguments.folder / row["family"]
        try:
            graph, prop, read = _read(folder, row, arguments.device)
        except UserError as error:
            print(f"{name[:78]:78s} {row['expected']:8s} not read: {error}", flush=True)
            continue
        began, cpu = time.perf_counter(), time.process_time()
        deadline = _deadline(arguments.seconds)
        result = find_counterexample(graph, prop, folder / row["onnx"], settings, arguments.device, deadline)
        attack, cpu = time.perf_counter() - began, time.process_time() - cpu
        hit = result.counterexample is not None
        sat, found, wrong = sat + (row["expected"] == "sat"), found + hit, wrong + (hit and row["expected"] == "unsat")
        run, best = result.attack, result.attack.best
        worst = f"{best.worst_row:9.2g}" if best is not None else "        -"
        print(f"{name[:78]:78s} {row['expected']:8s} {read:5.2f} {attack:7.2f} {cpu:6.2f}  {'sat' if hit else '-':6s}"
              f"  {run.restarts:8d} {run.steps:5d} {worst}", flush=True)  # fmt: skip
    print(f"{found} counterexamples confirmed; {sat} instances are known to have one; {wrong} wrong")
    return 1 if wrong else 0


def _read(folder: Path, row: dict[str, str], device: str) -> tuple[Graph, Property, float]:
    """Network, property, and the seconds that reading them took."""
    began = time.perf_counter()
    graph = read_onnx(folder / row["onnx"], LocalStore(), device=device)
    prop = read_vnnlib(folder / row["vnnlib"])
    return graph, prop, time.perf_counter() - began


def _deadline(seconds: float) -> Callable[[], float]:
    """How many of these seconds are left."""
    until = time.monotonic() + seconds
    return lambda: until - time.monotonic()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT.parent / "shared" / "benchmarks")
    parser.add_argument("--family", nargs="*", help="families to run; all by default")
    parser.add_argument("--expected", help="only instances with this verdict, for example sat")
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit for each attack")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=30)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--mode", default="PGD")
    parser.add_argument("--plain", action="store_true", help="without the scouting round")
    parser.add_argument("--no-early-stop", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
