"""Experiment 8 in one mode: the bounding and the search that a configuration asks for; verdict, bits, memory, time.

    python benchmarks/parallel/resnet_modes.py --modes single --configs exp_configs/parallel/exp8_resnet_large.yaml
    torchrun --nproc_per_node=2 benchmarks/parallel/resnet_modes.py --modes fsdp+rows --configs \
        exp_configs/parallel/exp8_resnet_large.yaml

A mode is where weights are (single, offload, fsdp), `rows` and `domains` as far as they are shared out, joined by `+`.
One mode per process; only without a GPU several. The networks are those of `resnet_make.py`. The warm-up takes three
iterations of alpha-CROWN and (`--warm-search`) one round. Stored row state: slopes, Adam's moments, the best slopes and
boxes (`alpha_keep.py`).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from auto_LiRPA.parallel.context import DistributedContext  # noqa: E402
from auto_LiRPA.parallel.numerics import full_precision  # noqa: E402
from auto_LiRPA.parallel.settings import ParallelSettings  # noqa: E402
from benchmarks.parallel import alpha_keep, measuring  # noqa: E402
from complete_verifier.bab.search import search  # noqa: E402
from complete_verifier.bab.settings import BabResult, BabSettings  # noqa: E402
from complete_verifier.bab.store import DomainStore  # noqa: E402
from complete_verifier.config import Config, load_config  # noqa: E402
from complete_verifier.driver.choices import bab_settings, bound_settings, incomplete_settings  # noqa: E402
from complete_verifier.driver.questions import FileReader, Question  # noqa: E402
from complete_verifier.incomplete.regions import unstable_count  # noqa: E402
from complete_verifier.incomplete.result import IncompleteResult  # noqa: E402
from complete_verifier.incomplete.settings import IncompleteSettings  # noqa: E402
from complete_verifier.incomplete.stage import run_incomplete  # noqa: E402
from complete_verifier.problem import Clock, Problem  # noqa: E402

MIB = measuring.MIB
LONG = 1e5  # seconds: no clock ends a measurement


def main() -> None:
    """Every configuration in every mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", "--mode", nargs="+", required=True)
    parser.add_argument("--configs", nargs="+", type=Path, required=True)
    parser.add_argument("--models", type=Path, help="folder of the networks, if not where the configuration says")
    parser.add_argument("--sets", nargs="*", default=[], metavar="KEY=VALUE", help="replace its settings")
    parser.add_argument("--warm-search", action="store_true", help="branch and bound is to be expected: warm it up too")
    measuring.add_repeats(parser)
    parser.add_argument("--warmup", type=int, choices=(0, 1), default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if len(options.modes) > 1 and torch.cuda.is_available():
        parser.error("one mode per process where memory is measured")
    context: DistributedContext | None = None
    for path in options.configs:
        words = [word for one in options.sets for word in ("--set", one)]
        config = load_config(["--config", str(path), *words]).config
        for mode in options.modes:
            context = measuring.join(_settings(config, mode))
            with torch.no_grad(), full_precision():
                _one(context, config, path, mode, options)
            measuring.release(context)
    assert context is not None
    context.close()


def _settings(config: Config, mode: str) -> ParallelSettings:
    """The configuration's section `parallel` in a mode."""
    words = mode.split("+")
    weights = [word for word in words if word not in ("rows", "domains")]
    own = config.parallel.settings()
    return replace(
        measuring.settings_of(weights[0] if weights else "single", own.tile_rows, own.block_mib),
        rows="shard" if "rows" in words else "replicate",
        domains="shard" if "domains" in words else "replicate",
    )


def _one(context: DistributedContext, config: Config, path: Path, mode: str, options: argparse.Namespace) -> None:
    """One network in one mode."""
    began = time.perf_counter()
    question = _read(context, config, options.models)
    measuring.wait(context)
    load_s = time.perf_counter() - began
    measuring.release(context)
    built = measuring.allocated(context)
    problem, first, rounds = question.problem, incomplete_settings(config, LONG), bab_settings(config)
    if options.warmup:
        _warm_up(problem, first, rounds, options.warm_search)
    held: dict[str, int] = {}
    seen, last = _Seen(), _Last()

    def run() -> None:
        seen.clear()
        last.result = last.found = None  # the result before is not part of this run's memory
        last.result, last.found = _decide(problem, first, rounds)

    with alpha_keep.watched(held), _watched(seen):
        mine = measuring.measure(context, run, options.repeats, 0, options.enough_s)
    result, found = last.result, last.found
    assert result is not None
    boxes = [side for box in result.intermediate.boxes.values() for side in (box.lower, box.upper)]
    tree = seen.digest(context)
    mine |= {
        "digest": measuring.digest([result.lower, *boxes, tree]),
        "weight_mib": round(question.store.weight_bytes() / MIB, 3),
        "gathered_mib": round(measuring.storage_bytes(context.buffers) / MIB, 3),
        "row_state_mib": {name: round(size / MIB, 3) for name, size in held.items()},
        "stored_mib": round(sum(size for name, size in held.items() if name != "kept passes") / MIB, 3),
        "domains_mib": round(seen.most_bytes / MIB, 3),
    }
    margin = problem.clauses.margin(result.lower)
    head = {
        "what": "resnet_modes",
        "exp": 8,
        "net": path.stem.removeprefix("exp8_resnet_"),
        "mode": mode,
        "tile": context.settings.tile_rows,
        "block_mib": context.settings.block_mib,
        "rows": len(margin),
        "proved": int(result.proven.sum()),
        "worst_margin": float(margin.min()),
        "lb_sum": float(result.lower.double().sum()),
        "undecided": unstable_count(problem.graph, result.intermediate),
        "verdict": "unsat" if found is None or found.closed else "unknown",
        "by": "alpha-CROWN" if found is None else found.stopped_by,
        "rounds": 0 if found is None else found.rounds,
        "domains": 0 if found is None else found.domains_visited,
        "worst_bound": None if found is None else found.worst_bound,
        "load_s": round(load_s, 2),
        "resident_built_mib": built,
    }
    measuring.tell(context, head, mine, options.out)


@dataclass(slots=True)
class _Last:
    result: IncompleteResult | None = None
    found: BabResult | None = None


def _decide(
    problem: Problem, first: IncompleteSettings, rounds: BabSettings
) -> tuple[IncompleteResult, BabResult | None]:
    """What the command does: bounds of all clauses, and branch and bound where they leave one open."""
    result = run_incomplete(problem, first)
    if bool(result.proven.all()):
        return result, None
    return result, search(problem, result, rounds)


def _warm_up(problem: Problem, first: IncompleteSettings, rounds: BabSettings, searches: bool) -> None:
    alpha = replace(problem.bounds.alpha, iterations=3)
    start = run_incomplete(replace(problem, bounds=replace(problem.bounds, alpha=alpha)), first)
    if searches:
        search(problem, start, replace(rounds, max_iterations=1))


def _read(context: DistributedContext, config: Config, models: Path | None) -> Question:
    network, specification = config.model.onnx_path, config.specification.vnnlib_path
    assert network is not None and specification is not None
    paths = [Path(network), Path(specification)]
    if models is not None:
        paths = [models / path.name for path in paths]
    return FileReader(*paths)(config, context, bound_settings(config), Clock(time.monotonic(), LONG))


@dataclass(slots=True)
class _Seen:
    """What came into this rank's stores in the last run."""

    ids: list[Tensor] = field(default_factory=list)
    lower: list[Tensor] = field(default_factory=list)
    most_bytes: int = 0

    def clear(self) -> None:
        """Before a run."""
        self.ids.clear()
        self.lower.clear()

    def digest(self, context: DistributedContext) -> Tensor:
        """All ranks' domains with their bounds, each once; one that two ranks bound differently is there twice."""
        mine = list(zip(_numbers(self.ids), _numbers(self.lower), strict=True))
        pairs = {pair for rank in context.world.objects(mine) for pair in rank}
        return torch.tensor(sorted(pairs), dtype=torch.float64)


def _numbers(parts: list[Tensor]) -> list[Any]:
    return torch.cat(parts).tolist() if parts else []


@contextmanager
def _watched(seen: _Seen) -> Iterator[None]:
    """Notes the id and bound of every domain that is added, and how much the stores hold."""
    original = DomainStore.add

    def add(self: DomainStore[Any], domains: Any, margin: Tensor) -> None:
        original(self, domains, margin)
        seen.most_bytes = max(seen.most_bytes, self.bytes())
        seen.ids.append(domains.id.clone())
        seen.lower.append(domains.lower.clone())

    DomainStore.add = add  # type: ignore[method-assign]
    try:
        yield
    finally:
        DomainStore.add = original  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
