"""Experiment 7: bounds and branch and bound of a vision transformer in one mode: numbers, digests, memory and time.

    python benchmarks/parallel/vit_time.py --mode single --config exp_configs/parallel/exp7_vit_pgd_2_3_16.yaml --out F
    torchrun --nproc_per_node=2 benchmarks/parallel/vit_time.py --mode fsdp+domains --config ... --parts bab

Parts: `bounds`: IBP and CROWN margins of every instance of the network, held against sampled inputs (and against a
peer's bounds where `reference/bounds_vit.json` is beside the benchmarks); the configuration's own instance is timed.
`bab`: the incomplete stage and the rounds of branch and bound that the configuration asks for, timed together. One mode
per process. Digests are of all bounds, and of the ids and bounds of every domain that came into any rank's queue.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from auto_LiRPA.bounds.methods import Method, Query, compute  # noqa: E402
from auto_LiRPA.bounds.settings import BoundSettings  # noqa: E402
from auto_LiRPA.graph.run import evaluate  # noqa: E402
from auto_LiRPA.parallel.context import DistributedContext  # noqa: E402
from auto_LiRPA.parallel.numerics import full_precision  # noqa: E402
from auto_LiRPA.parallel.settings import ParallelSettings  # noqa: E402
from auto_LiRPA.parallel.store import ParameterStore  # noqa: E402
from auto_LiRPA.values import Box  # noqa: E402
from benchmarks.parallel import measuring  # noqa: E402
from complete_verifier.bab.refined_search import refined_search  # noqa: E402
from complete_verifier.bab.settings import BabResult  # noqa: E402
from complete_verifier.bab.store import DomainStore  # noqa: E402
from complete_verifier.config import Config, load_config  # noqa: E402
from complete_verifier.driver.choices import bab_settings, bound_settings, incomplete_settings  # noqa: E402
from complete_verifier.driver.questions import FileReader  # noqa: E402
from complete_verifier.incomplete.stage import run_incomplete  # noqa: E402
from complete_verifier.problem import Clock, Problem  # noqa: E402

MIB = measuring.MIB
ROOT = measuring.ROOT
MODES = ("single", "offload", "fsdp", "rows", "fsdp+rows", "tp", "domains", "fsdp+domains")
METHODS = ("IBP", "CROWN")
BATCH = 500  # sampled inputs that are evaluated together
# What a right bound in float32 may miss a sampled value by, relative to 1 + |value|.
SLACK = 1e-4


def main() -> None:
    """Every configuration, in one mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", "--mode", nargs="+", choices=MODES, required=True)
    parser.add_argument("--configs", "--config", nargs="+", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=("bounds", "bab"), default=["bounds", "bab"])
    parser.add_argument("--data", type=Path, help="VNN-COMP folders, if not where the configuration says")
    parser.add_argument("--onnx", type=Path, help="another network than the configuration's")
    parser.add_argument("--vnnlib", type=Path, help="another property")
    parser.add_argument("--only", action="store_true", help="bounds of the configuration's own instance alone")
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="as for abcrown")
    measuring.add_common(parser)
    options = parser.parse_args()
    if len(options.modes) > 1 and torch.cuda.is_available():
        parser.error("one mode per process where memory is measured")
    context = None
    with torch.no_grad(), full_precision():
        for path in options.configs:
            asked = _asked(path, options)
            for mode in options.modes:
                context = measuring.join(_settings(mode, asked.config))
                if "bounds" in options.parts:
                    _bounds(context, options, mode, asked)
                if "bab" in options.parts:
                    _search(context, options, mode, asked)
                measuring.release(context)
    assert context is not None
    context.close()


@dataclass(frozen=True, slots=True)
class _Asked:
    """One configuration: the network, its own property, and all properties of that network."""

    config: Config
    onnx: Path
    vnnlib: Path
    every: tuple[Path, ...]

    @property
    def net(self) -> str:
        return self.onnx.stem


def _asked(path: Path, options: argparse.Namespace) -> _Asked:
    words = ["--config", str(path), "--device", "cuda" if torch.cuda.is_available() else "cpu"]
    config = load_config([*words, *(word for one in options.set for word in ("--set", one))]).config
    onnx, vnnlib = Path(config.model.onnx_path or ""), Path(config.specification.vnnlib_path or "")
    onnx, vnnlib = (one if one.is_absolute() else ROOT / one for one in (onnx, vnnlib))
    if options.data is not None:
        onnx, vnnlib = (options.data / "vit" / one.parent.name / one.name for one in (onnx, vnnlib))
    onnx, vnnlib = options.onnx or onnx, options.vnnlib or vnnlib
    every = [vnnlib]
    listed = onnx.parent.parent / "instances.csv"
    if not options.only and listed.exists():
        with open(listed, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if Path(row[0]).name == onnx.name]
        every += sorted(found for row in rows if (found := listed.parent / row[1]).name != vnnlib.name)
    return _Asked(config, onnx, vnnlib, tuple(every))


def _settings(mode: str, config: Config) -> ParallelSettings:
    """The section `parallel` in a mode; sizes as the configuration says."""
    own = config.parallel.settings()
    weights = mode.removesuffix("domains").removesuffix("+") or "single"
    chosen = measuring.settings_of(weights, own.tile_rows, own.block_mib)
    return replace(chosen, domains="shard") if mode.endswith("domains") else chosen


def _problem(context: DistributedContext, asked: _Asked, vnnlib: Path) -> tuple[Problem, ParameterStore]:
    bounds = bound_settings(asked.config)
    question = FileReader(asked.onnx, vnnlib)(asked.config, context, bounds, Clock(time.monotonic(), 1e6))
    return question.problem, question.store


def _head(options: argparse.Namespace, mode: str, asked: _Asked, vnnlib: Path) -> measuring.Figures:
    return {"what": "vit_time", "exp": 7, "net": asked.net, "instance": vnnlib.stem, "mode": mode}


# -- bounds -----------------------------------------------------------------------------------------------------------
def _bounds(context: DistributedContext, options: argparse.Namespace, mode: str, asked: _Asked) -> None:
    """Margins by IBP and CROWN of every instance; the first one is timed."""
    for vnnlib in asked.every:
        problem, store = _problem(context, asked, vnnlib)
        reference = _reference(asked, vnnlib)
        sampled = _least_margins(problem, options.samples) if options.samples else None
        for name in METHODS:
            settings = replace(problem.bounds)

            def run(name: str = name, problem: Problem = problem, settings: BoundSettings = settings) -> Tensor:
                return _margins(problem, name, settings)

            margins = run()
            mine: measuring.Figures = {"digest": measuring.digest([margins])}
            if vnnlib is asked.vnnlib:
                mine |= measuring.measure(context, run, options.repeats, options.warmup)
            mine["weight_mib"] = round(store.weight_bytes() / MIB, 4)
            told = _head(options, mode, asked, vnnlib) | {
                "part": "bounds",
                "method": name,
                "margins": margins.flatten().tolist(),
                "least": float(margins.min()),
                "tile": context.settings.tile_rows,
                "block_mib": context.settings.block_mib,
            }
            if sampled is not None:
                slack = SLACK * (1 + sampled.abs())
                told |= {"samples": options.samples, "violated": int((sampled < margins.flatten() - slack).sum()),
                         "sampled_least": float(sampled.min())}  # fmt: skip
            if f"{name} margins" in reference:
                told["peer_margins"] = reference[f"{name} margins"]
            if f"{name} outputs" in reference:
                told |= _against_peer(problem, name, reference[f"{name} outputs"])
            measuring.tell(context, told, mine, options.out)


def _margins(problem: Problem, name: str, settings: BoundSettings) -> Tensor:
    """Lower bounds of every row of every clause, less its right-hand side: ``[K * R]``."""
    clauses = problem.clauses
    rows = clauses.c.flatten(0, 1).unsqueeze(0)
    found = compute(
        problem.graph, problem.region.pick(torch.zeros(1, dtype=torch.long, device=clauses.c.device)),
        Query(c=rows, upper=False, boxes=False), Method.named(name), problem.context, settings,
    )  # fmt: skip
    assert found.lower is not None
    return found.lower.bound.flatten() - clauses.rhs.flatten()


def _least_margins(problem: Problem, count: int) -> Tensor:
    """The least value of every row at sampled inputs: corners, points within, and the best of them moved downhill."""
    region, clauses = problem.region, problem.clauses
    assert isinstance(region, Box)
    gen = torch.Generator().manual_seed(7)
    c, rhs = clauses.c.flatten(0, 1), clauses.rhs.flatten()
    least = torch.full_like(rhs, torch.inf)
    low, width = region.lower[:1], (region.upper - region.lower)[:1]
    for first in range(0, count, BATCH):
        share = torch.rand(min(BATCH, count - first), *problem.graph.input_shape, generator=gen).to(low)
        if (first // BATCH) % 2:
            share = share.round()
        y = evaluate(problem.graph, low + share * width).flatten(1)
        least = torch.minimum(least, (y @ c.T - rhs).amin(0))
    return least


def _reference(asked: _Asked, vnnlib: Path) -> dict[str, Any]:
    """A peer's bounds over the same box in float32: margins and outputs, by method."""
    path = asked.onnx.parent.parent.parent.parent / "reference" / "bounds_vit.json"
    if not path.exists():
        return {}
    found: dict[str, Any] = {}
    for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
        if Path(case["onnx"]).name != asked.onnx.name or Path(case["vnnlib"]).name != vnnlib.name:
            continue
        for one in case["results"]:
            if one["perturbation"] == "box" and one["dtype"] == "float32" and one["method"] in METHODS:
                if one.get("margin"):
                    found[f"{one['method']} margins"] = one["margin_lb"]
                else:
                    found[f"{one['method']} outputs"] = (one["lb"], one["ub"])
    return found


def _against_peer(problem: Problem, name: str, peer: tuple[list[float], list[float]]) -> measuring.Figures:
    """Widths of the outputs' bounds, of all together and of the one that is worst, times the peer's."""
    method = Method.named(name)
    found = compute(problem.graph, problem.region, Query(boxes=False), method, problem.context, problem.bounds)
    assert found.lower is not None and found.upper is not None
    lower, upper = found.lower.bound.flatten().cpu(), found.upper.bound.flatten().cpu()
    low, high = (torch.tensor(side) for side in peer)
    return {
        "width_ratio": float((upper - lower).sum() / (high - low).sum()),
        "widest_ratio": float(((upper - lower) / (high - low)).max()),
    }


# -- branch and bound
@dataclass
class _Seen:
    """What came into this rank's queue, and how the last search ended."""

    domains: dict[int, float]
    most_bytes: int = 0
    found: BabResult | None = None
    root: Tensor | None = None
    proven: int = 0
    incomplete_s: float = 0.0


def _search(context: DistributedContext, options: argparse.Namespace, mode: str, asked: _Asked) -> None:
    """The incomplete stage and the search of the configuration's own instance."""
    problem, store = _problem(context, asked, asked.vnnlib)
    config = asked.config
    seconds = config.bab.timeout
    seen = _Seen({})

    def run() -> None:
        seen.domains.clear()
        seen.most_bytes = 0
        timed = replace(problem, clock=Clock(time.monotonic(), seconds))
        began = time.monotonic()
        start = run_incomplete(timed, incomplete_settings(config, seconds))
        seen.incomplete_s = time.monotonic() - began
        seen.root, seen.proven = start.lower, int(start.proven.sum())
        seen.found = None
        if not bool(start.proven.all()):
            with _watched(seen):
                seen.found = refined_search(timed, start, bab_settings(config), None)

    figures = measuring.measure(context, run, options.repeats, options.warmup)
    found = seen.found
    assert seen.root is not None
    mine = figures | {
        "digest": _digest(context, seen),
        "stored_mib": round(seen.most_bytes / MIB, 3),
        "domains_here": len(seen.domains),
        "weight_mib": round(store.weight_bytes() / MIB, 4),
    }
    closed = found is None or found.closed
    told = _head(options, mode, asked, asked.vnnlib) | {
        "part": "bab",
        "verdict": "unsat" if closed else "unknown",
        "stopped_by": "the incomplete stage" if found is None else found.stopped_by,
        "domains": 0 if found is None else found.domains_visited,
        "rounds": 0 if found is None else found.rounds,
        "worst_bound": found.worst_bound if found is not None and math.isfinite(found.worst_bound) else None,
        "root": float((seen.root - problem.clauses.rhs).min()),
        "open_clauses": len(seen.root) - seen.proven,
        "batch": config.solver.batch_size,
        "incomplete_s": round(seen.incomplete_s, 2),
    }
    measuring.tell(context, told, mine, options.out)


def _digest(context: DistributedContext, seen: _Seen) -> str:
    """Of the root's bounds and of all ranks' domains by id; one that two ranks hold with different bounds spoils it."""
    every = context.world.objects(list(seen.domains.items()))
    pairs = sorted({pair for part in every for pair in part})
    assert seen.root is not None
    return measuring.digest([seen.root, torch.tensor(pairs, dtype=torch.float64)])


@contextmanager
def _watched(seen: _Seen) -> Iterator[None]:
    original: Callable[..., None] = DomainStore.add

    def add(self: DomainStore[Any], domains: Any, margin: Tensor) -> None:
        original(self, domains, margin)
        seen.most_bytes = max(seen.most_bytes, self.bytes())
        seen.domains.update(zip(domains.id.tolist(), domains.lower.tolist(), strict=True))

    DomainStore.add = add  # type: ignore[method-assign]
    try:
        yield
    finally:
        DomainStore.add = original  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
