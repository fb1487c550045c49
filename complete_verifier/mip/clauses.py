"""`general.complete_verifier: mip`: the exact program of every open clause decides it.

A clause is a conjunction of rows, so its program minimises the largest of them: ``c_r y - rhs_r <= t`` for all r. The
linear relaxation goes first; its bound is proved from its multipliers and rests on no solver. Then the mixed-integer
program, in which ``t`` may not exceed the margin: no solution means that the least ``t`` is above it. ``t`` also ends
a little below 0 (early stop), so that the first clear counterexample is optimal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.values import Box
from complete_verifier.events import Listener, Note
from complete_verifier.incomplete.regions import trusted
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.mip.encode import Encoding, Sides, Unsuitable, check_encodable
from complete_verifier.mip.messages import Answer, Ending, Task
from complete_verifier.mip.pool import SolverPool
from complete_verifier.mip.program import Floats, Program, widened
from complete_verifier.mip.regions import RegionPrograms, finite, margin
from complete_verifier.mip.settings import MipSettings
from complete_verifier.problem import Problem

OnCandidate = Callable[[np.ndarray], bool]

# The first round's time for one clause where there are more clauses than processes; each later round has twice it.
_FIRST_SECONDS = 5.0
# Of the time left, for the linear relaxations.
_RELAXED_SHARE = 0.25
# A counterexample this many margins below its thresholds is one in float32 too, as a rule.
_CLEAR_MARGINS = 100.0
# Parts that a clause is cut into where processes would be idle: 2 to this power at most.
_MOST_LEVELS = 6


@dataclass(frozen=True, slots=True)
class MipResult:
    """``proven`` ``[K]``: clauses without a counterexample, those of the earlier stages included.

    ``confirmed``: a counterexample was found. ``out_of_time``: the clock ended it; else ``stopped_by`` says why.
    """

    proven: Tensor
    confirmed: bool
    out_of_time: bool
    stopped_by: str
    seconds: float


def solve_clauses(
    problem: Problem,
    start: IncompleteResult,
    settings: MipSettings,
    on_event: Listener,
    on_candidate: OnCandidate,
    pool: SolverPool | None = None,
) -> MipResult:
    """Decide the clauses that ``start`` leaves open, until one has a confirmed counterexample.

    Args:
        on_candidate: whether an input (flattened, float64) is a counterexample; asked for every promising point.
        pool: solver processes that are there already; None starts some.

    Raises:
        Unsuitable: there is no such program; nothing was tried.
        OutOfTime: the deadline passed while a program was built.
    """
    began = time.monotonic()
    check_encodable(problem.graph, problem.region)
    with nullcontext(pool) if pool else SolverPool(settings.processes, problem.clock.left) as solvers:
        stage = _Stage(problem, start, settings, on_event, on_candidate, solvers)
        stopped = stage.run()
    return MipResult(
        proven=stage.proven,
        confirmed=stage.confirmed,
        out_of_time=problem.clock.left() <= 0.5 and not stage.confirmed,
        stopped_by=stopped,
        seconds=time.monotonic() - began,
    )


@dataclass(slots=True)
class _Clause:
    """One open clause over its region's program: the objective is column ``t``, the last one."""

    number: int
    program: Program
    rows: Floats
    limits: Floats
    n_inputs: int
    margin: float
    binaries: np.ndarray
    early_stop: bool
    parts: list[tuple[np.ndarray, Floats]] = field(default_factory=list)  # fixed binaries of each part that is open
    undecided: bool = False


@dataclass(slots=True)
class _Stage:
    problem: Problem
    start: IncompleteResult
    settings: MipSettings
    on_event: Listener
    on_candidate: OnCandidate
    pool: SolverPool
    proven: Tensor = field(init=False)
    confirmed: bool = False

    def __post_init__(self) -> None:
        self.proven = self.start.proven.clone()

    def run(self) -> str:
        """Why it ended."""
        numbers = (~self.proven).nonzero().squeeze(-1)
        self.pool.start(len(numbers))
        groups = self._clauses(numbers)
        if not self._relaxed(groups) and not self.confirmed and self.settings.formulation == "mip":
            self._exact(groups)
        if self.confirmed:
            return "counterexample confirmed"
        if bool(self.proven.all()):
            return "every clause is decided by its program"
        left = int((~self.proven).sum())
        if self.settings.formulation != "mip":
            return f"linear relaxations leave {left} clauses open (solver.mip.formulation: {self.settings.formulation})"
        return f"{left} clauses too close to their thresholds for the solver's tolerance"

    # -- programs -------------------------------------------------------------------------------------------------
    def _clauses(self, numbers: Tensor) -> list[list[_Clause]]:
        """The open clauses, region by region, those with the worst bound first."""
        problem, boxes = self.problem, self.start.intermediate.boxes
        good = trusted(boxes)
        programs = RegionPrograms(problem, self.settings.formulation)
        groups = []
        worst = problem.clauses.margin(self.start.lower)
        for region in torch.unique(problem.clauses.region[numbers]).tolist():
            if (good is not None and not bool(good[region])) or not finite(boxes, region):
                raise Unsuitable("bounds are not finite or cross: does the network overflow? try double_fp")
            mine = numbers[problem.clauses.region[numbers] == region]
            encoding, reach = programs.encoded(region, boxes, problem.graph.output)
            order = mine[worst[mine].argsort(stable=True)]
            groups.append([self._clause(k, encoding, reach) for k in order.tolist()])
        return groups

    def _clause(self, number: int, encoding: Encoding, reach: Sides) -> _Clause:
        clauses = self.problem.clauses
        rhs = clauses.rhs[number].double().cpu().numpy()
        real = np.isfinite(rhs)
        c, rhs = clauses.c[number].double().cpu().numpy()[real], rhs[real]
        target, program = encoding.target, encoding.program
        width = len(program.lower)
        rows = np.zeros((len(rhs), width + 1))
        rows[:, : target.matrix.shape[1]] = (target.matrix.T @ c.T).T
        rows[:, -1] = -1.0
        limits = rhs - c @ target.offset
        low, high = _row_range(c, reach, rhs)
        size = max(abs(low), abs(high))
        extended = replace(
            program,
            rows=widened(program.rows, width + 1),
            lower=np.append(program.lower, low - 1 - margin(size)),
            upper=np.append(program.upper, high + 1 + margin(size)),
            integer=np.append(program.integer, False),
        )
        # an objective that is no row of the outputs at all (an empty clause) cannot occur: every clause has a row
        by_gap = encoding.binaries[np.argsort(-encoding.gaps, kind="stable")]
        return _Clause(
            number, extended, rows, limits, encoding.n_inputs, margin(size), by_gap, self.settings.early_stop
        )

    # -- solving --------------------------------------------------------------------------------------------------
    def _relaxed(self, groups: list[list[_Clause]]) -> bool:
        """Bound every clause by its linear relaxation; True if that settles all."""
        seconds = _RELAXED_SHARE * self.problem.clock.left()
        until = time.monotonic() + seconds
        for group in groups:
            tasks = [_task(clause, clause.number, None, False, seconds) for clause in group]
            by_number = {clause.number: clause for clause in group}
            for answer in self.pool.solve(group[0].program, tasks, lambda _: time.monotonic() < until):
                clause = by_number[answer.number]
                if answer.bound > 0:
                    self.proven[clause.number] = True
                elif self._counterexample(clause, answer):
                    return True
        self._tell("linear relaxations")
        return bool(self.proven.all())

    def _exact(self, groups: list[list[_Clause]]) -> None:
        """Rounds of mixed-integer solves with growing time limits."""
        limit = _FIRST_SECONDS
        cut = False
        while (waiting := list(self._open(groups))) and self.problem.clock.left() > 0.5:
            left = self.problem.clock.left()
            count = sum(len(group) for group in waiting)
            alone = count <= self.pool.processes
            if alone and not cut:
                self._cut(waiting, count)
                cut = True
            seconds = left if alone else max(limit, left * self.pool.processes / count / 4)
            for group in waiting:
                if self._solve(group, seconds):
                    return
            limit *= 2
            self._tell("mixed-integer programs")

    def _open(self, groups: list[list[_Clause]]) -> Iterator[list[_Clause]]:
        for group in groups:
            mine = [c for c in group if not bool(self.proven[c.number]) and not c.undecided]
            if mine:
                yield mine

    def _cut(self, groups: list[list[_Clause]], count: int) -> None:
        """Cut each clause's program by the signs of its least linear neurons, so that no process is idle."""
        levels = min(_MOST_LEVELS, max(0, int(np.ceil(np.log2(self.pool.processes / count)))))
        for clause in (c for group in groups for c in group):
            chosen = clause.binaries[:levels]
            signs = (np.arange(2 ** len(chosen))[:, None] >> np.arange(len(chosen))) & 1
            clause.parts = [(chosen, row.astype(np.float64)) for row in signs]

    def _solve(self, group: list[_Clause], seconds: float) -> bool:
        """One round for the clauses of a region; True if a counterexample ends it all."""
        tasks: list[Task] = []
        about: list[tuple[_Clause, int]] = []
        for clause in group:
            clause.parts = clause.parts or [(np.zeros(0, dtype=np.int64), np.zeros(0))]
            for position, part in enumerate(clause.parts):
                tasks.append(_task(clause, len(tasks), part, True, seconds))
                about.append((clause, position))
        done: dict[int, set[int]] = {clause.number: set() for clause in group}
        for answer in self.pool.solve(group[0].program, tasks, lambda task: not about[task.number][0].undecided):
            clause, position = about[answer.number]
            if answer.ending is Ending.INFEASIBLE or answer.bound > clause.margin:
                done[clause.number].add(position)
            elif self._counterexample(clause, answer):
                return True
            elif answer.ending is not Ending.LIMIT:
                self._not_confirmed(clause, answer)
        for clause in group:
            clause.parts = [part for i, part in enumerate(clause.parts) if i not in done[clause.number]]
            if not clause.parts:
                self.proven[clause.number] = True
        return False

    def _not_confirmed(self, clause: _Clause, answer: Answer) -> None:
        """A solve that ended without an answer: once more for the deepest point, then the clause stays undecided."""
        if clause.early_stop and answer.ending is Ending.OPTIMAL and answer.value < 0:
            clause.early_stop = False
        else:
            clause.undecided = True

    def _counterexample(self, clause: _Clause, answer: Answer) -> bool:
        """Whether the answer's point is confirmed as a counterexample."""
        if self.settings.skip_unsafe or len(answer.point) == 0:
            return False
        region = self.problem.region
        assert isinstance(region, Box)
        r = int(self.problem.clauses.region[clause.number])
        low, high = (side[r].flatten().cpu().double().numpy() for side in (region.lower, region.upper))
        self.confirmed = self.on_candidate(np.clip(answer.point[: clause.n_inputs], low, high))
        return self.confirmed

    def _tell(self, by: str) -> None:
        self.on_event(Note(f"{int(self.proven.sum())} of {len(self.proven)} clauses are proved after {by}"))


def _row_range(c: Floats, reach: Sides, rhs: Floats) -> tuple[float, float]:
    """The range of ``max_r (c_r y - rhs_r)`` for outputs within ``reach``."""
    positive, negative = np.maximum(c, 0), np.minimum(c, 0)
    low = positive @ reach.lower + negative @ reach.upper - rhs
    high = positive @ reach.upper + negative @ reach.lower - rhs
    return float(low.max()), float(high.max())


def _task(
    clause: _Clause, number: int, part: tuple[np.ndarray, Floats] | None, exact: bool, seconds: float
) -> Task:
    """Minimise ``t``. In an exact solve it may only be where the sign is in doubt."""
    lower, upper = clause.program.lower.copy(), clause.program.upper.copy()
    cost = np.zeros(len(lower))
    cost[-1] = 1.0
    if exact:
        upper[-1] = clause.margin if clause.early_stop else upper[-1]
        if clause.early_stop:
            lower[-1] = max(lower[-1], -_CLEAR_MARGINS * clause.margin)
    if part is not None:
        lower[part[0]] = upper[part[0]] = part[1]
    return Task(number, cost, clause.rows, clause.limits, lower, upper, exact, seconds)
