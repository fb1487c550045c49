"""Runs benchmark families as the competition would, each category with its own configuration, against known verdicts.

    python benchmarks/families.py --out out/families                      # all families of ../shared/benchmarks but vit
    python3 -m benchmarks.families --benchmarks DIR --families mnist_fc oval21 --cap 60 --device cuda --out out/gpu
    python benchmarks/families.py --out out/families --jobs 2 --threads 1 --cap 60 -- --batch_size 512

DIR has one folder a family (onnx/, vnnlib/) and expected.csv; without --benchmarks it is the environment's
ABCROWN_BENCHMARKS, or ../shared/benchmarks beside the checkout. What follows `--` goes to every run.

OUT/results.csv gets a row as each instance finishes. A later call goes on from there: instances that were decided, or
that had as much time as they would get now, are not run again, so the rest can be given more time by a larger --cap.
Every `sat` is replayed without the tool's own code (benchmarks/replay.py). OUT/results.md is the same for readers. The
exit code is 1 if a verdict is wrong, a counterexample is none or an instance ended more than 2 s after its limit.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.family_report import (  # noqa: E402
    DECIDED,
    Row,
    append_row,
    markdown,
    read_rows,
    summarise,
    summary_line,
)
from benchmarks.replay import fault  # noqa: E402
from complete_verifier.vnncomp.categories import config_for  # noqa: E402
from complete_verifier.vnncomp.command import Task, tool_command  # noqa: E402

_LEFT_OUT = ("vit",)  # unless it is named: transformers are measured by themselves
_HOPELESS_S = 30.0  # a run that is so late is killed


@dataclass(frozen=True, slots=True)
class Case:
    """One row of expected.csv, and the seconds that it gets."""

    folder: Path
    known: dict[str, str]
    limit: float

    @property
    def key(self) -> tuple[str, str, str]:
        return self.known["family"], self.known["onnx"], self.known["vnnlib"]


def main() -> int:
    arguments = _arguments()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    table = out / "results.csv"
    cases = _cases(arguments)
    if not cases:
        raise SystemExit("no instance fits --families and --only")
    before = read_rows(table)
    todo = [case for case in cases if not _done(before.get(case.key), case)]
    print(f"{len(cases)} instances, {len(todo)} to run; {_about(arguments)}", flush=True)
    _run_all(todo, table, arguments)
    order = {case.key: place for place, case in enumerate(cases)}
    rows = sorted((row for key, row in read_rows(table).items() if key in order), key=lambda row: order[row.key])
    (out / "results.md").write_text(markdown(rows, _about(arguments)), encoding="utf-8")
    for summary in summarise(rows):
        print(summary_line(summary))
    return 1 if any(row.wrong or row.late for row in rows) else 0


def _run_all(todo: list[Case], table: Path, arguments: argparse.Namespace) -> None:
    """Several at a time; those with the shortest limits first."""
    began, lock = time.monotonic(), threading.Lock()

    def work(case: Case) -> None:
        if time.monotonic() - began > arguments.stop_after:
            return
        row = run_one(case, arguments)
        with lock:
            append_row(table, row)
            expected = "as expected" if row.verdict == row.expected else f"expected {row.expected}"
            print(f"{row.family} {row.name}: {row.verdict} ({expected}) in {row.seconds:.1f} s {row.note}", flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(work, sorted(todo, key=lambda case: case.limit)))


def run_one(case: Case, arguments: argparse.Namespace) -> Row:
    """One instance in a process of its own."""
    family, onnx, vnnlib = case.key
    network, specification = case.folder / onnx, case.folder / vnnlib
    config = config_for(family, network, specification)
    with tempfile.TemporaryDirectory(prefix="families_") as folder:
        results = Path(folder) / "results.txt"
        task = Task(family, network, specification, results, case.limit)
        command = [
            *tool_command(task, ROOT), "--quiet", "--set", f"parallel.threads={arguments.threads}",
            *(["--device", arguments.device] if arguments.device else []), *arguments.extra,
        ]  # fmt: skip
        if arguments.config:
            command[command.index("--config") + 1] = str(arguments.config.resolve())
            config = str(arguments.config)
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        began = time.monotonic()
        # standard error goes to a file: a pipe would fill up, and outlive a killed process that has children
        with open(Path(folder) / "stderr.txt", "w+", encoding="utf-8", errors="replace") as errors:
            try:
                done = subprocess.run(
                    command, stdout=subprocess.DEVNULL, stderr=errors, env=environment, cwd=folder,
                    timeout=case.limit + _HOPELESS_S, check=False,
                )  # fmt: skip
                code = done.returncode
            except subprocess.TimeoutExpired:
                code = -9
            seconds = time.monotonic() - began
            errors.seek(0)
            said = " ".join(errors.read().split())[-300:]
        text = results.read_text(encoding="utf-8") if results.exists() else ""
    verdict = text.partition("\n")[0] or f"error {code}"
    replay = (fault(text, network, specification) or "ok") if verdict == "sat" else ""
    row = Row(
        family=family, onnx=onnx, vnnlib=vnnlib, config=config, limit=case.limit, expected=case.known["expected"],
        verdict=verdict, seconds=seconds, replay=replay, note="", peer_verdict=case.known.get("abcrown_result", ""),
        peer_seconds=case.known.get("abcrown_seconds", ""),
    )  # fmt: skip
    words = ["WRONG"] * row.wrong + ["late"] * row.late + [said] * (code != 0)
    return Row(**{name: getattr(row, name) for name in Row.__slots__ if name != "note"}, note=" ".join(words))


def _done(row: Row | None, case: Case) -> bool:
    """Whether more time could not change the row."""
    return row is not None and (row.decided or (row.limit >= case.limit and not row.verdict.startswith("error")))


def _cases(arguments: argparse.Namespace) -> list[Case]:
    with open(arguments.benchmarks / "expected.csv", encoding="utf-8") as file:
        known = list(csv.DictReader(file))
    families = arguments.families or [
        name for name in dict.fromkeys(row["family"] for row in known) if name not in _LEFT_OUT
    ]
    unknown = set(families) - {row["family"] for row in known}
    if unknown:
        raise SystemExit(f"{arguments.benchmarks / 'expected.csv'} has no family {', '.join(sorted(unknown))}")
    return [
        Case((arguments.benchmarks / row["family"]).resolve(), row, min(float(row["timeout"]), arguments.cap))
        for row in known
        if row["family"] in families
        and (arguments.only is None or arguments.only in f"{row['onnx']} {row['vnnlib']}")
        and (not arguments.known or row["expected"] in DECIDED)
    ]


def _about(arguments: argparse.Namespace) -> str:
    """How the rows were made."""
    cap = "the instances' own limits" if arguments.cap == float("inf") else f"at most {arguments.cap:g} s an instance"
    return (
        f"Device {arguments.device or 'default'}, torch {version('torch')}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, {arguments.jobs} at a time with {arguments.threads} threads each, {cap}, "
        f"options {' '.join(arguments.extra) or 'none'}, {time.strftime('%Y-%m-%d')}."
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("ABCROWN_BENCHMARKS", str(ROOT.parent / "shared" / "benchmarks"))
    parser.add_argument("--benchmarks", type=Path, default=Path(default), metavar="DIR")
    parser.add_argument("--families", nargs="+", metavar="NAME", help="all but vit if left out")
    parser.add_argument("--only", metavar="TEXT", help="only instances whose file names contain this")
    parser.add_argument("--known", action="store_true", help="only instances whose verdict is known")
    parser.add_argument("--config", type=Path, metavar="FILE", help="this configuration instead of the category's")
    parser.add_argument("--jobs", type=int, default=2, help="instances at a time [2]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each [1]")
    parser.add_argument("--cap", type=float, default=float("inf"), help="seconds that an instance gets at most")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="start no instance after these seconds")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the configuration's if left out")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("extra", nargs="*", help="further flags of every run, after --")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
