"""Ranks that go through stages other than the search: plain and optimised bounds, mixed-integer programs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from auto_LiRPA.bounds.settings import AlphaSettings
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.whole import whole
from complete_verifier.config import Config
from complete_verifier.driver.choices import bound_settings
from complete_verifier.driver.mixed_integer import refined, solve_exactly
from complete_verifier.driver.questions import read_question
from complete_verifier.events import Event
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.incomplete.settings import IncompleteSettings
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.mip.pool import SolverPool
from complete_verifier.problem import Clock
from tests.driver.problems import sampled_problem

ROWS = ParallelSettings(mode="single", rows="shard", domains="shard", threads=1, tile_rows=4)
REPLICAS = replace(ROWS, rows="replicate")
FSDP = replace(ROWS, mode="fsdp", block_mib=1e-6)
MODES = {"rows": ROWS, "replicas": REPLICAS, "fsdp": FSDP}


@dataclass(frozen=True)
class Bounding:
    """One incomplete stage. ``late``: the rank whose clock ends it after so many seconds."""

    name: str
    mode: str
    alpha: AlphaSettings
    seed: int = 3
    late: int | None = None
    seconds: float = 60.0


@dataclass(frozen=True)
class Programs:
    """One mixed-integer stage on files."""

    name: str
    mode: str
    network: Path
    specification: Path
    refine: bool = False


def stages(cases: list[Bounding | Programs]) -> dict[str, dict[str, Any]]:
    """What each stage came to, by its name."""
    contexts = {name: DistributedContext.from_env(settings) for name, settings in MODES.items()}
    found = {}
    for case in cases:
        run: Callable[[Any, DistributedContext], dict[str, Any]] = _bounds if isinstance(case, Bounding) else _programs
        found[case.name] = run(case, contexts[case.mode])
    contexts["rows"].close()
    return found


def _bounds(case: Bounding, context: DistributedContext) -> dict[str, Any]:
    problem = sampled_problem(case.seed, alpha=case.alpha).problem
    store = context.make_store()
    graph = problem.graph.mapped(lambda tensor: tensor, lambda weight: store.place(whole(weight)))
    clock = Clock(time.monotonic(), 60.0 if case.late != context.rank else case.seconds)
    problem = replace(problem, graph=graph, clock=clock, context=replace(context, seconds_left=clock.left))
    events: list[Event] = []
    result = run_incomplete(problem, IncompleteSettings(), events.append)
    return {**_numbers(result), "seconds": clock.elapsed(), "events": [type(event).__name__ for event in events]}


def _numbers(result: IncompleteResult) -> dict[str, Any]:
    return {
        "lower": result.lower,
        "proven": result.proven,
        "boxes": {i: (box.lower, box.upper) for i, box in result.intermediate.boxes.items()},
        "slopes": dict(result.slopes),
        "alpha": {i: r.alpha.index for i, r in result.intermediate.relaxations.items() if r.alpha is not None},
    }


def _programs(case: Programs, context: DistributedContext) -> dict[str, Any]:
    config = Config()
    mip = config.solver.mip.model_copy(update={"parallel_solvers": 1})
    config = config.model_copy(update={"solver": config.solver.model_copy(update={"mip": mip})})
    clock = Clock(time.monotonic(), 60.0)
    context = replace(context, seconds_left=clock.left)
    bounds = replace(bound_settings(config), alpha=AlphaSettings(iterations=3))
    question = read_question(case.network, case.specification, config, context, bounds, clock)
    start = run_incomplete(question.problem, IncompleteSettings(method="crown"))
    started = SolverPool._start
    processes = 0

    def counted(pool: SolverPool) -> None:
        nonlocal processes
        processes += 1
        started(pool)

    with mock.patch.object(SolverPool, "_start", counted):
        if case.refine:
            return {**_numbers(refined(question, start, config, lambda event: None)), "processes": processes}
        result, counterexample = solve_exactly(question, start, config, lambda event: None)
    assert result is not None
    proven: torch.Tensor = result.proven
    return {"proven": proven, "confirmed": result.confirmed, "found": counterexample, "processes": processes}


