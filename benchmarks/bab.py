"""Speed and memory of branch and bound on one instance: the bounding step alone, then whole searches.

    python benchmarks/bab.py step  --onnx N.onnx --vnnlib P.vnnlib --batches 512 4096 8192 16384
    python benchmarks/bab.py whole --onnx N.onnx --vnnlib P.vnnlib --batches 512 4096 --rounds 10
    python benchmarks/bab.py whole --onnx N.onnx --vnnlib P.vnnlib --batches 4096 --rounds 70 --parts

The settings are the paper's fair ones: 20 iterations, lr_alpha 0.1, lr_beta 0.03, kFSB, no pruning, synchronous
(`--free`: the defaults of a run instead: tiles as wide as the device likes, early end). One batch size a process gives
the cleanest peaks. `--parts` adds the seconds of each part of a round, synchronised, from a run of its own. The first
search of a process compiles kernels: `--warm` runs one of two rounds before, and its seconds are told apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from auto_LiRPA.parallel.context import DistributedContext  # noqa: E402
from auto_LiRPA.parallel.numerics import full_precision  # noqa: E402
from complete_verifier.bab import search as searching  # noqa: E402
from complete_verifier.bab.bounding import make_bounder  # noqa: E402
from complete_verifier.bab.roots import root_domains  # noqa: E402
from complete_verifier.bab.settings import BabSettings, Tiling  # noqa: E402
from complete_verifier.bab.shrink import shrunk  # noqa: E402
from complete_verifier.bab.split import split  # noqa: E402
from complete_verifier.branching.layout import make_layout  # noqa: E402
from complete_verifier.config import load_config  # noqa: E402
from complete_verifier.driver.choices import bound_settings  # noqa: E402
from complete_verifier.driver.questions import FileReader  # noqa: E402
from complete_verifier.incomplete.result import IncompleteResult  # noqa: E402
from complete_verifier.incomplete.settings import IncompleteSettings  # noqa: E402
from complete_verifier.incomplete.stage import run_incomplete  # noqa: E402
from complete_verifier.problem import Clock, Problem  # noqa: E402

MIB = 2**20
FAIR = BabSettings(
    iterations=20, lr_alpha=0.1, lr_beta=0.03, synchronous=True, auto_enlarge=False, pruning_in_iteration=False
)


def main() -> None:
    """Print one JSON object a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("step", "whole"))
    parser.add_argument("--onnx", required=True)
    parser.add_argument("--vnnlib", required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--depth", type=int, default=6, help="splits of the domains of the step")
    parser.add_argument("--tile", type=int, default=8192)
    parser.add_argument("--free", action="store_true")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--warm", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    problem, start = _start(options.onnx, options.vnnlib, device, options.seconds)
    with torch.no_grad(), full_precision():
        if options.what == "step":
            for batch in options.batches:
                _tell(step(problem, start, batch, options.depth, options.repeats, options.tile))
            return
        settings = replace(FAIR, synchronous=False) if options.free else FAIR
        if options.warm:
            seconds = _timed(lambda: searching.search(problem, start, replace(settings, max_iterations=2)), device)[1]
            _tell({"what": "warm-up of two rounds", "seconds": round(seconds, 2)})
        for batch in options.batches:
            _tell(whole(problem, start, replace(settings, batch_size=batch, max_iterations=options.rounds), options))


def _start(onnx: str, vnnlib: str, device: torch.device, seconds: float) -> tuple[Problem, IncompleteResult]:
    words = ["--onnx_path", onnx, "--vnnlib_path", vnnlib, "--init_iteration", "20", "--lr_init_alpha", "0.1"]
    config = load_config([*words, "--device", device.type]).config
    context = DistributedContext.single(device)
    clock = Clock(time.monotonic(), seconds)
    question = FileReader(Path(onnx), Path(vnnlib))(config, context, bound_settings(config), clock)
    with full_precision():
        start = run_incomplete(question.problem, IncompleteSettings())
    return question.problem, start


def step(
    problem: Problem, start: IncompleteResult, count: int, depth: int, repeats: int, tile: int
) -> dict[str, Any]:
    """Domains per second of the bounding step alone: ``count`` domains with ``depth`` random splits each."""
    roots = root_domains(problem, start, make_layout(problem.graph, start.intermediate), torch.float16)
    problem, start = shrunk(problem, start)
    layout = make_layout(problem.graph, start.intermediate)
    device = roots.id.device
    settings = searching.ascent_settings(FAIR, device)
    bounder = make_bounder(problem, start, layout, settings, Tiling(tile, True))
    gen = torch.Generator().manual_seed(0)
    family = roots.pick(torch.arange(count, device=device) % len(roots))
    for _ in range(depth):
        free = torch.where(family.sign.cpu() == 0, torch.rand(family.sign.shape, generator=gen), -1.0)
        both = split(family, free.argmax(1, keepdim=True).to(device), 0)
        side = torch.randint(0, 2, (count,), generator=gen).to(device)
        family = both.pick(torch.arange(count, device=device) + side * count)
    _, first = _timed(lambda: bounder.bound(family), device)
    _reset_peak(device)
    times = sorted(_timed(lambda: bounder.bound(family), device)[1] for _ in range(repeats))
    seconds = times[len(times) // 2]
    return {
        "what": "step",
        "domains": count,
        "columns": layout.width,
        "tile": tile,
        "first_s": round(first, 3),
        "ms": round(1e3 * seconds, 2),
        "domains_per_s": round(count / seconds),
        "peak_mib": _peak(device),
    }


def whole(
    problem: Problem, start: IncompleteResult, settings: BabSettings, options: argparse.Namespace
) -> dict[str, Any]:
    """One search."""
    device = start.lower.device
    _reset_peak(device)
    fresh = replace(problem, clock=Clock(time.monotonic(), options.seconds))
    found, seconds = _timed(lambda: searching.search(fresh, start, settings), device)
    told = {
        "what": "whole",
        "batch": settings.batch_size,
        "synchronous": settings.synchronous,
        "rounds": found.rounds,
        "domains": found.domains_visited,
        "seconds": round(seconds, 3),
        "domains_per_s": round(found.domains_visited / seconds),
        "worst_bound": round(found.worst_bound, 3),
        "closed": found.closed,
        "stopped_by": found.stopped_by,
        "peak_mib": _peak(device),
        "reserved_mib": round(torch.cuda.max_memory_reserved() / MIB) if device.type == "cuda" else None,
    }
    if options.parts:
        with _clocked(device) as parts:
            searching.search(replace(problem, clock=Clock(time.monotonic(), options.seconds)), start, settings)
        told["parts_s"] = {name: round(value, 3) for name, value in sorted(parts.items(), key=lambda x: -x[1])}
    return told


@contextmanager
def _clocked(device: torch.device) -> Iterator[dict[str, float]]:
    """Within: seconds of each part of the rounds, the device waited for at both ends."""
    from complete_verifier.bab import expansion
    from complete_verifier.bab.relu_bounding import ReluBounder
    from complete_verifier.bab.store import DomainStore

    parts: dict[str, float] = defaultdict(float)
    places: list[tuple[Any, str]] = [(ReluBounder, "bound"), (ReluBounder, "quick"), (ReluBounder, "facts")]
    places += [(DomainStore, "add"), (DomainStore, "take"), (DomainStore, "worst_margin"), (expansion, "split")]
    places += [(expansion.Expander, "_choose"), (searching._Search, "_round")]
    before = [(owner, name, getattr(owner, name)) for owner, name in places]

    def clocked(name: str, body: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **keywords: Any) -> Any:
            found, seconds = _timed(lambda: body(*args, **keywords), device)
            parts[name] += seconds
            return found

        return run

    for owner, name, body in before:
        setattr(owner, name, clocked(name, body))
    try:
        yield parts
    finally:
        for owner, name, body in before:
            setattr(owner, name, body)


def _timed(body: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    _wait(device)
    began = time.perf_counter()
    found = body()
    _wait(device)
    return found, time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / MIB, 1) if device.type == "cuda" else None


def _tell(fact: dict[str, Any]) -> None:
    print(json.dumps(fact), flush=True)


if __name__ == "__main__":
    main()
