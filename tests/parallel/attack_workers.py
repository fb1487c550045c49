"""Ranks that attack together: what each of them found, and what it had to do for it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from auto_LiRPA.graph.onnx_reader import read_onnx
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from complete_verifier.attack.descent import Descent
from complete_verifier.attack.objective import Best
from complete_verifier.attack.search import find_counterexample
from complete_verifier.attack.settings import AttackSettings
from complete_verifier.spec.property import Property
from tests.parallel.input_split_workers import Sleeper

SINGLE = ParallelSettings(mode="single", rows="replicate", domains="shard", threads=1)
FSDP = ParallelSettings(mode="fsdp", rows="shard", domains="shard", threads=1, block_mib=1e-6)


@dataclass(frozen=True)
class Attack:
    """One attack. ``path``: the network's file; ``judge``: another file that confirms."""

    name: str
    path: Path
    prop: Property
    settings: AttackSettings
    parallel: ParallelSettings = SINGLE
    judge: Path | None = None
    only_rank: int | None = None  # the others' points count for nothing
    skew: bool = False
    seconds: float = 1e6
    late_rank: int | None = None  # it alone has so little time that it stops at once


def attacks(cases: list[Attack]) -> dict[str, dict[str, Any]]:
    """What each attack came to, by its name."""
    sleeper = Sleeper(int(os.environ["RANK"]))
    contexts: dict[str, DistributedContext] = {}
    found = {}
    for case in cases:
        key = repr(case.parallel)
        if key not in contexts:
            contexts[key] = DistributedContext.from_env(case.parallel, observer=sleeper)
        sleeper.active = case.skew
        found[case.name] = _attack(case, contexts[key])
    next(iter(contexts.values())).close()
    return found


def _attack(case: Attack, context: DistributedContext) -> dict[str, Any]:
    graph = read_onnx(case.path, context.make_store())
    left = 0.05 if case.late_rank == context.rank else case.seconds
    began = time.monotonic()
    drawn: list[tuple[int, Tensor]] = []
    before = _calls(context)
    with _watched(case, context, drawn):
        result = find_counterexample(
            graph,
            case.prop,
            case.judge or case.path,
            case.settings,
            "cpu",
            lambda: left - (time.monotonic() - began),
            context=context,
        )
    best = result.attack.best
    return {
        "counterexample": result.counterexample,
        "restarts": result.attack.restarts,
        "steps": result.attack.steps,
        "best": None if best is None else (best.worst_row, best.x.tobytes()),
        "drawn": drawn,
        "seconds": time.monotonic() - began,
        "calls": {kind: calls - before.get(kind, 0) for kind, calls in _calls(context).items()},
    }


def _calls(context: DistributedContext) -> dict[str, int]:
    return {kind: traffic.calls for kind, traffic in context.counters.collectives.items()}


@contextmanager
def _watched(case: Attack, context: DistributedContext, drawn: list[tuple[int, Tensor]]) -> Iterator[None]:
    """Within: the random starts are noted, and other ranks than the only one are blind."""
    begin, uniform, observe = Descent.__init__, Descent._uniform, Best.observe
    numbers: dict[int, range] = {}

    def began(self: Descent, scene: Any, index: Tensor, starts: range, seeds: Tensor) -> None:
        numbers[id(self)] = starts
        begin(self, scene, index, starts, seeds)

    def noted(self: Descent) -> Tensor:
        points = uniform(self)
        drawn.extend(zip(numbers[id(self)], points.clone(), strict=True))
        return points

    def blind(self: Best, index: Any, x: Tensor, worst: Tensor) -> None:
        observe(self, index, x, worst.abs() + 1)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Descent, "__init__", began))
        stack.enter_context(mock.patch.object(Descent, "_uniform", noted))
        if case.only_rank not in (None, context.rank):
            stack.enter_context(mock.patch.object(Best, "observe", blind))
        yield
