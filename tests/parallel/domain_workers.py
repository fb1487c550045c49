"""What a rank does for the tests of sharded domains: whole searches, and everything that they bounded on the way."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.groups import Group
from auto_LiRPA.parallel.numerics import full_precision
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.whole import whole
from auto_LiRPA.values import Box
from complete_verifier.bab import bounding, schedule_synchronous
from complete_verifier.bab import search as searching
from complete_verifier.bab.agreement import Agreed
from complete_verifier.bab.checkpoint import Checkpoint, CheckpointWriter, Fingerprint
from complete_verifier.bab.checkpoint_root import root_result, root_tensors
from complete_verifier.bab.domains import Domains
from complete_verifier.bab.expansion import Expander
from complete_verifier.bab.keeper import Keeper
from complete_verifier.bab.refine import RefineSettings, can_refine, refine_boxes
from complete_verifier.bab.relu_bounding import ReluBounder
from complete_verifier.bab.rounds import Rounds
from complete_verifier.bab.schedule import Work
from complete_verifier.bab.schedule_free import FreeRunning
from complete_verifier.bab.search import ascent_settings, search
from complete_verifier.bab.settings import BabProgress, BabSettings, Tiling
from complete_verifier.bab.store import DomainStore
from complete_verifier.bab.subproblems import Expanded, Share
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Clauses, Clock, Problem
from tests.bab.problems import BOUNDS
from tests.parallel.round_counts import RoundCounts, round_counts

PRINT = Fingerprint("n", "p", {})


@dataclass(frozen=True)
class Question:
    """A problem and the bounds that its search starts from, computed without ranks; picklable."""

    graph: Graph
    region: Box
    clauses: Clauses
    start: IncompleteResult


@dataclass(frozen=True)
class Run:
    """One search. ``parallel``: settings beside ``threads``; ``tile``: children of a synchronous job at most.

    ``general``: by the bounder of all networks. ``folder``: checkpoints go there after every round; ``resume``: from
    the one that is there. ``plant``: a fault, by the name of a function of this module. ``refine``: seconds for the
    hidden neurons' boxes, and nothing else. ``counts``: what each round says and waits for is counted.
    """

    name: str
    question: Question
    settings: BabSettings
    parallel: dict[str, Any] = field(default_factory=dict)
    tile: int = 8
    general: bool = False
    folder: str = ""
    resume: bool = False
    plant: str = ""
    refine: float = 0.0
    counts: bool = False


@dataclass
class Trace:
    """What a rank bounded, and how its search ended. Rows of ``children`` are domains, whoever asked for them."""

    result: tuple[Any, ...] = ()
    ids: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    numbers: tuple[Tensor, ...] = ()
    progress: list[tuple[Any, ...]] = field(default_factory=list)
    candidates: list[np.ndarray] = field(default_factory=list)
    stored: int = 0  # bytes of open domains, all rounds added up
    idle: int = 0
    told: int = 0  # candidates that it was asked to confirm
    ahead: int = 0  # rounds that began before the last one was known
    collectives: dict[str, int] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)  # ids of the checkpoint that it went on from
    boxes: list[Tensor] = field(default_factory=list)  # lower and upper bounds of hidden neurons after refinement
    counts: list[RoundCounts] = field(default_factory=list)


def searches(runs: Sequence[Run]) -> dict[str, Trace]:
    """All runs one after the other."""
    found = {}
    for run in runs:
        sys.stderr.write(f"{run.name}\n")  # for the log of a rank that fails
        found[run.name] = _searched(run)
    return found


def _searched(run: Run) -> Trace:
    context = DistributedContext.from_env(ParallelSettings(threads=1, timeout_s=60, **run.parallel))
    trace = Trace()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(schedule_synchronous, "SYNCHRONOUS_TILE", run.tile))
        stack.enter_context(mock.patch.object(searching, "SYNCHRONOUS_TILE", run.tile))
        stack.enter_context(mock.patch.object(CheckpointWriter, "due", lambda self, size, seconds_left: True))
        if run.general:
            stack.enter_context(mock.patch.object(bounding, "is_relu_network", lambda graph: False))
        if run.counts:
            stack.enter_context(round_counts(context, trace.counts))
        stack.enter_context(_recorded(trace))
        if run.plant:
            stack.enter_context(globals()[run.plant](context))
        problem, start = _case(run, context), run.question.start
        if run.refine:
            return _refined(run, problem, trace)
        keeper = _keeper(run, start)
        if keeper is not None and keeper.resumed is not None:
            trace.resumed = [i for piece in keeper.resumed.pieces() for i in piece["0000"].tolist()]
            start = root_result(problem, keeper.resumed.root())

        def confirm(x: np.ndarray) -> bool:
            spec = problem.clauses
            trace.told += 1
            if run.plant == stumbles_on_one.__name__:
                return True
            y = evaluate(run.question.graph, torch.as_tensor(x).unsqueeze(0).to(spec.c))[0].flatten()
            found = bool(((spec.c @ y <= spec.rhs + 1e-5).all(1)).any())
            if found:
                trace.candidates.append(x)
            return found

        def progressed(at: BabProgress) -> None:
            trace.progress.append((at.round, at.domains_open, at.domains_visited, at.worst_bound))

        found = search(problem, start, run.settings, progressed, confirm, keeper)
    trace.result = (found.closed, found.stopped_by, found.domains_visited, found.rounds, found.worst_bound)
    trace.collectives = {kind: traffic.calls for kind, traffic in context.counters.collectives.items()}
    return trace


def _case(run: Run, context: DistributedContext) -> Problem:
    """The problem on this rank's context, its weights where the mode wants them."""
    asked, graph = run.question, run.question.graph
    if context.mode in ("fsdp", "offload"):
        store = context.make_store()
        graph = graph.mapped(lambda t: t, lambda w: store.place(whole(w)))
    clock = Clock(time.monotonic(), 300.0)
    return Problem(graph, asked.region, asked.clauses, replace(context, seconds_left=clock.left), BOUNDS, clock)


def _keeper(run: Run, start: IncompleteResult) -> Keeper | None:
    if not run.folder:
        return None
    folder = Path(run.folder)
    writer = CheckpointWriter(folder, PRINT, 0.0, root_tensors(start))
    return Keeper(writer, Checkpoint.read(folder) if run.resume else None)


def _refined(run: Run, problem: Problem, trace: Trace) -> Trace:
    settings = RefineSettings(
        seconds=run.refine, ascent=ascent_settings(run.settings, problem.context.device), tiling=Tiling(64, False)
    )
    seen: list[tuple[int, ...]] = []
    assert can_refine(problem)
    with torch.no_grad(), full_precision():
        found = refine_boxes(problem, run.question.start, settings, lambda *told: seen.append(told))
    trace.progress = list(seen)
    trace.boxes = [side for box in found.intermediate.boxes.values() for side in (box.lower, box.upper)]
    return trace


@contextmanager
def _recorded(trace: Trace) -> Iterator[None]:
    """Within: every child that counts is noted with its bounds and variables."""
    sorted_out, expand = Expander.sorted_out, Expander.expand
    status = searching._Search._status
    expanded = [0]

    def noted(self: Expander, parts: Sequence[Expanded[Domains]]) -> Share[Domains]:
        trace.idle += expanded[0] - len(parts)
        expanded[0] = 0
        for part in parts:
            child = part.children
            rows = (child.lower, child.value, child.sign, child.mix, child.clause, child.depth, part.closed, part.real)
            trace.ids = torch.cat([trace.ids, child.id])
            before = trace.numbers or tuple(t[:0] for t in rows)
            trace.numbers = tuple(torch.cat(both) for both in zip(before, rows, strict=True))
        return sorted_out(self, parts)

    def counted(self: Expander, *given: Any) -> Expanded[Domains]:
        expanded[0] += 1
        return expand(self, *given)

    def weighed(self: Any, store: Any, *given: Any) -> Any:
        trace.stored += store.bytes()
        return status(self, store, *given)

    hear = Rounds._hear

    def heard(self: Rounds[Any], *given: Any) -> Agreed:
        found = hear(self, *given)
        trace.ahead += self._flying is not None
        return found

    with mock.patch.multiple(Expander, sorted_out=noted, expand=counted):
        with mock.patch.object(searching._Search, "_status", weighed), mock.patch.object(Rounds, "_hear", heard):
            yield


# -- faults ------------------------------------------------------------------------------------------------------------
@contextmanager
def skips_a_domain(context: DistributedContext) -> Iterator[None]:
    """The last rank leaves one of its parents out."""
    run = FreeRunning.run

    def careless(self: FreeRunning[Domains], work: Work[Domains], first_id: int, number: int) -> Share[Domains]:
        if context.rank == context.world_size - 1 and len(work.parents) > 1:
            work = Work(work.own, work.parents.pick(torch.arange(1, len(work.parents))))
        return run(self, work, first_id, number)

    with mock.patch.object(FreeRunning, "run", careless):
        yield


@contextmanager
def doubles_a_domain(context: DistributedContext) -> Iterator[None]:
    """What goes to another rank stays here as well."""
    send, take = Group.send, DomainStore.take
    last: list[Any] = []

    def noted(self: DomainStore[Any], count: int) -> Any:
        found = take(self, count)
        last[:] = [self, found]
        return found

    def careless(self: Group, rows: Tensor, to: int) -> None:
        send(self, rows, to)
        store, kept = last
        store.add(kept, kept.lower)

    with mock.patch.object(Group, "send", careless), mock.patch.object(DomainStore, "take", noted):
        yield


@contextmanager
def stumbles_on_one(context: DistributedContext) -> Iterator[None]:
    """No fault: the last rank finds a counterexample (it says) in the twelfth round, and has nothing to do after it."""
    run = FreeRunning.run

    def lucky(self: FreeRunning[Domains], work: Work[Domains], first_id: int, number: int) -> Share[Domains]:
        share = run(self, work, first_id, number)
        if context.rank == context.world_size - 1 and number >= 12:
            assert number == 12 or len(work.parents) == 0, "a rank that has found one goes on looking"
            share.candidate = np.zeros(1) if number == 12 else None
        return share

    with mock.patch.object(FreeRunning, "run", lucky):
        yield


@contextmanager
def a_twin_strays(context: DistributedContext) -> Iterator[None]:
    """The last rank takes another child for open than the rank that has the same queue: as many, but not the same."""
    sorted_out = Expander.sorted_out

    def careless(self: Expander, parts: Any) -> Any:
        share = sorted_out(self, parts)
        if context.rank == context.world_size - 1 and share.left is not None:
            ids = share.left.id.clone()
            ids[0] += 1000
            share.left = replace(share.left, id=ids)
        return share

    with mock.patch.object(Expander, "sorted_out", careless):
        yield


@contextmanager
def is_not_idle(context: DistributedContext) -> Iterator[None]:
    """A rank without domains does nothing, as if weights were not fetched together."""
    with mock.patch.object(FreeRunning, "_idle", lambda self: None):
        yield


@contextmanager
def is_short_of_memory(context: DistributedContext) -> Iterator[None]:
    """The last rank has no memory for more than 8 children at once."""
    bound = ReluBounder.bound

    def careless(self: ReluBounder, domains: Domains, seconds_left: Any = None) -> Domains:
        if context.rank == context.world_size - 1 and len(domains) > 8:
            raise MemoryError
        return bound(self, domains, seconds_left)

    with mock.patch.object(ReluBounder, "bound", careless):
        yield


@contextmanager
def is_late(context: DistributedContext) -> Iterator[None]:
    """On the last rank time ends within its third round."""
    bound, calls = ReluBounder.bound, [0]

    def careless(self: ReluBounder, domains: Domains, seconds_left: Any = None) -> Domains:
        calls[0] += 1
        if context.rank == context.world_size - 1 and calls[0] == 3:
            raise OutOfTime
        return bound(self, domains, seconds_left)

    with mock.patch.object(ReluBounder, "bound", careless):
        yield
