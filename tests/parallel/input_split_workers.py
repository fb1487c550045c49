"""Ranks that split inputs together: one worker runs many searches, and tells of each all that has to agree."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import complete_verifier.bab.exchange as exchange
import complete_verifier.input_bab.search as search_module
import complete_verifier.input_bab.team as team_module
from auto_LiRPA.errors import ContractError
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.whole import whole
from auto_LiRPA.values import Box
from complete_verifier.attack.problems import project
from complete_verifier.input_bab.search import search_boxes
from complete_verifier.input_bab.settings import InputBabProgress, InputBabSettings, Leaf
from complete_verifier.problem import Clock, Problem
from tests.bab.problems import Case
from tests.input_bab.cases import covers, first_bounds, input_case


@dataclass(frozen=True)
class Run:
    """One search. ``parallel``: settings of the context. ``fault``: planted for it, by name."""

    name: str
    kind: str
    seed: int
    settings: InputBabSettings
    parallel: ParallelSettings = ParallelSettings(mode="single", rows="replicate", domains="shard", threads=1)
    regions: int = 1
    whole_bytes: int | None = None  # the limit of whole weights; 0: they are never brought together
    attacks: bool = False
    only_rank: int | None = None  # the others never confirm anything
    skew: bool = False  # random sleeps before collectives, clocks apart
    seconds: float = 60.0
    late_rank: int | None = None  # its clock is ahead: it alone is late, soon
    fault: str = ""


_LATE_S = 0.3  # after which a rank that is ahead meets its deadline


class Sleeper:
    """Sleeps for a random time before each collective."""

    def __init__(self, rank: int) -> None:
        self._random = random.Random(rank)
        self.active = False

    def entering(self, kind: str, ranks: tuple[int, ...] = ()) -> None:
        if self.active and self._random.random() < 0.3:
            time.sleep(self._random.random() * 0.004)

    def left(self) -> None:
        pass

    def at(self, step: str, patient: bool = False) -> None:
        pass


def searches(runs: list[Run]) -> dict[str, dict[str, Any]]:
    """What each search came to, by its name."""
    sleeper = Sleeper(int(os.environ["RANK"]))
    contexts: dict[str, DistributedContext] = {}
    found = {}
    for run in runs:
        key = repr(run.parallel)
        if key not in contexts:
            size = int(os.environ["WORLD_SIZE"])
            parallel = run.parallel if size > 1 else replace(run.parallel, mesh=None)
            contexts[key] = DistributedContext.from_env(parallel, observer=sleeper)
        sleeper.active = run.skew
        found[run.name] = _search(run, contexts[key])
    next(iter(contexts.values())).close()
    return found


def problem_of(case: Case, context: DistributedContext, clock: Clock) -> Problem:
    """The case's problem, its weights where the context's mode has them."""
    store = context.make_store()
    graph = case.problem.graph.mapped(lambda tensor: tensor, lambda weight: store.place(whole(weight)))
    context = replace(context, seconds_left=clock.left)
    return replace(case.problem, graph=graph, context=context, clock=clock)


def _search(run: Run, context: DistributedContext) -> dict[str, Any]:
    case = input_case(run.kind, run.seed, regions=run.regions)
    ahead = run.seconds - _LATE_S if run.late_rank == context.rank else 0.0
    problem = problem_of(case, context, Clock(time.monotonic() - ahead, run.seconds))
    start = first_bounds(replace(problem, context=replace(context, seconds_left=None)))
    history: list[tuple[Any, ...]] = []
    judge = _Judge(case.problem, run.only_rank in (None, context.rank))
    limit = team_module.WHOLE_WEIGHT_BYTES if run.whole_bytes is None else run.whole_bytes

    def on_progress(progress: InputBabProgress) -> None:
        history.append((progress.round, progress.domains_open, progress.domains_visited, progress.worst_bound))

    with (
        mock.patch.object(team_module, "WHOLE_WEIGHT_BYTES", limit),
        mock.patch.object(search_module, "_LEAST_TILE", 7),  # so many tiles that every rank has some
        _planted(run.fault, context),
    ):
        queues = team_module.prepared(problem).context.domains
        try:
            result = search_boxes(
                problem,
                start,
                replace(run.settings, record_leaves=True),
                on_progress,
                judge.confirms,
                judge.attack if run.attacks else None,
            )
        except ContractError as error:
            return {"error": str(error)}
    leaves = [leaf for part in queues.objects(list(result.leaves)) for leaf in part]
    return {
        "holds": case.holds,
        "closed": result.closed,
        "stopped_by": result.stopped_by,
        "visited": result.domains_visited,
        "rounds": result.rounds,
        "worst": result.worst_bound,
        "history": history,
        "leaves": _sorted(leaves),
        "covered": not result.closed or _covered(problem, ~start.proven, leaves),
        "own_leaves": len(result.leaves),
        "attacks": judge.attacks,
        "calls": {kind: traffic.calls for kind, traffic in context.counters.collectives.items()},
    }


class _Judge:
    """Confirms candidates on the network; attacks by looking at the boxes' middles."""

    def __init__(self, problem: Problem, may: bool) -> None:
        self._graph, self._spec, self._may = problem.graph, problem.clauses, may
        self.attacks: list[tuple[int, float]] = []

    def confirms(self, x: np.ndarray) -> bool:
        y = evaluate(self._graph, torch.as_tensor(x).unsqueeze(0).to(self._spec.c))[0].flatten()
        return self._may and bool((self._spec.c @ y <= self._spec.rhs + 1e-6).all(1).any())

    def attack(self, lower: Tensor, upper: Tensor, clause: Tensor, first: bool) -> bool:
        self.attacks.append((len(clause), float(lower.double().sum())))
        middle = project(lower + (upper - lower) / 2, lower, upper)
        return any(self.confirms(x) for x in middle.numpy())


def _sorted(leaves: list[Leaf]) -> Tensor:
    """All leaves as numbers ``[N, 1 + 2 m]``, in an order of their own."""
    rows = sorted([float(leaf.clause), *leaf.lower.tolist(), *leaf.upper.tolist()] for leaf in leaves)
    return torch.tensor(rows, dtype=torch.float64)


def _covered(problem: Problem, open_clauses: Tensor, leaves: list[Leaf]) -> bool:
    region, clauses = problem.region, problem.clauses
    assert isinstance(region, Box)
    return all(
        covers(leaves, k, region.lower.flatten(1)[clauses.region[k]], region.upper.flatten(1)[clauses.region[k]])
        for k in open_clauses.nonzero().squeeze(-1).tolist()
    )


@contextmanager
def _planted(fault: str, context: DistributedContext) -> Iterator[None]:
    """A fault in the sharing of boxes."""
    original = exchange.carry_out

    def loses(moves: Any, group: Any, store: Any, like: Any, margin: Any) -> None:
        original(moves, group, store, like, margin)
        if moves and group.rank == moves[0].target:
            store.take(1)

    def doubles(moves: Any, group: Any, store: Any, like: Any, margin: Any) -> None:
        original(moves, group, store, like, margin)
        if moves and group.rank == moves[0].target:
            again = store.look(1)
            store.add(again)

    chosen = {"loses": loses, "doubles": doubles}.get(fault, original)
    with mock.patch.object(team_module, "carry_out", chosen):
        yield
