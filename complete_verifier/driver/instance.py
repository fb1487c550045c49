"""One instance from its files to its verdict: attack, bounds, branch and bound, each timed.

Only two things make a verdict: `unsat` needs every clause of every region proved, `sat` a counterexample that
onnxruntime confirms on the original file. Whatever else happens (limits, the deadline, SIGTERM, numbers that overflow)
ends as `unknown` or `timeout`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.numerics import full_precision
from complete_verifier.attack.confirm import confirm
from complete_verifier.attack.problems import Problems
from complete_verifier.attack.search import find_counterexample
from complete_verifier.bab.search import search
from complete_verifier.bab.settings import BabProgress
from complete_verifier.config import Config
from complete_verifier.driver.choices import attack_settings, bab_settings, bound_settings, incomplete_settings
from complete_verifier.driver.instances import Instance
from complete_verifier.driver.interrupts import DeadlinePassed, Interrupts, Terminated
from complete_verifier.driver.questions import Question, read_question
from complete_verifier.driver.usage import placement, rank_use, resident_mib, start_measuring
from complete_verifier.events import AttackEnded, Listener, ProblemLoaded, SearchProgressed, Stage, StageStarted
from complete_verifier.incomplete.regions import trusted
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.incomplete.stage import explained_out_of_memory, run_incomplete
from complete_verifier.outcome import Outcome, Verdict
from complete_verifier.problem import Clock
from complete_verifier.reporting.report import InstanceReport, SearchUse
from complete_verifier.spec.counterexample import Counterexample, format_counterexample

# An attack ends after this share of the time left, so that a proof has a chance where there is no counterexample.
ATTACK_SHARE = 0.4
BAB_TIME_LIMIT = "time limit"  # the search's word for the deadline


def run_instance(
    config: Config,
    instance: Instance,
    context: DistributedContext,
    clock: Clock,
    listener: Listener,
    interrupts: Interrupts,
) -> InstanceReport:
    """Decide one instance before the clock's deadline.

    Raises:
        UserError: bad input, before any long work.
    """
    run = _Run(config, instance, replace(context, seconds_left=clock.left), clock, listener)
    try:
        with interrupts.exposed(clock.left()), full_precision(), _deterministic(config.general.deterministic):
            run.outcome = run.decide()
    except (DeadlinePassed, OutOfTime):
        # the alarm may have rung just after the last step: what was reached by then counts
        run.outcome = run.outcome or Outcome(verdict=Verdict.TIMEOUT, stopped_by=f"time limit {clock.timeout_s:g} s")
    except Terminated:
        run.outcome = run.outcome or Outcome(verdict=Verdict.UNKNOWN, stopped_by="terminated by SIGTERM")
    return run.report(run.outcome)


@dataclass(slots=True)
class _Run:
    """The state of one instance while it is decided; everything known so far is here when it is cut short."""

    config: Config
    instance: Instance
    context: DistributedContext
    clock: Clock
    listener: Listener
    phases: dict[str, float] = field(
        default_factory=lambda: {"load": 0.0, "attack": 0.0, "incomplete": 0.0, "bab": 0.0}
    )
    question: Question | None = None
    resident: float | None = None
    row_bounds: tuple[float, ...] = ()
    progress: BabProgress | None = None
    bab_seconds: float = 0.0
    counterexample: Counterexample | None = None
    status: str = "unknown"
    outcome: Outcome | None = None

    def decide(self) -> Outcome:
        """All stages in order, until one settles it."""
        question = self._load()
        order = self.config.attack.pgd_order
        if order == "before" and self._attack(question, None):
            return self._violated("unsafe-pgd")
        result = self._incomplete(question)
        if self.counterexample is not None:
            return self._violated("unsafe-pgd")
        if bool(result.proven.all()):
            self.status = "safe-incomplete"
            return Outcome(verdict=Verdict.HOLDS, stopped_by="bounds prove every clause")
        if order == "after" and self._attack(question, ~result.proven):
            return self._violated("unsafe-pgd")
        if self.config.general.complete_verifier == "skip":
            return Outcome(verdict=Verdict.UNKNOWN, stopped_by="no complete verifier (general.complete_verifier: skip)")
        return self._search(question, result)

    def report(self, outcome: Outcome) -> InstanceReport:
        """Everything that is to be written about this run."""
        text = None
        if outcome.verdict is Verdict.VIOLATED:
            assert self.counterexample is not None
            text = format_counterexample(self.counterexample.x, [float(y) for y in self.counterexample.y])
        return InstanceReport(
            index=self.instance.index,
            network=str(self.instance.network),
            specification=str(self.instance.specification),
            verdict=outcome.verdict,
            status=self.status if outcome.verdict in (Verdict.HOLDS, Verdict.VIOLATED) else "unknown",
            stopped_by=outcome.stopped_by,
            wall_s=self.clock.elapsed(),
            timeout_s=self.clock.timeout_s,
            counterexample=text,
            phases=self.phases,
            row_bounds=self.row_bounds,
            search=self._search_use(),
            placement=placement(self.context),
            ranks=(rank_use(self.context, None if self.question is None else self.question.store, self.resident),),
        )

    # -- stages ---------------------------------------------------------------------------------------------------
    def _load(self) -> Question:
        with self._phase("load"):
            _seed(self.config.general.seed)
            start_measuring(self.context.device)
            instance, bounds = self.instance, bound_settings(self.config)
            question = read_question(
                instance.network, instance.specification, self.config, self.context, bounds, self.clock
            )
            self.question, self.resident = question, resident_mib(self.context.device)
        graph, prop = question.problem.graph, question.prop
        self.listener(
            ProblemLoaded(
                network=str(instance.network),
                nodes=len(graph.nodes),
                inputs=prop.n_inputs,
                outputs=prop.n_outputs,
                regions=len(prop.regions),
                clauses=len(question.problem.clauses.region),
            )
        )
        return question

    def _attack(self, question: Question, open_clauses: Tensor | None) -> bool:
        """Look for a counterexample to the clauses that are open (None: to all); True if one is confirmed."""
        problem = question.problem
        limit = self.clock.left() * (1 - ATTACK_SHARE)
        with self._phase("attack"), explained_out_of_memory(problem):
            began = time.monotonic()
            dtype, device = problem.clauses.c.dtype, self.context.device
            targets = Problems.from_property(question.prop, problem.graph.input_shape, dtype, device)
            if open_clauses is not None:
                targets = targets.select(open_clauses.nonzero().squeeze(-1))
            found = find_counterexample(
                problem.graph,
                question.prop,
                question.network,
                attack_settings(self.config),
                device,
                lambda: self.clock.left() - limit,
                targets,
            )
            self.counterexample = found.counterexample
            confirmed = self.counterexample is not None
            seconds = time.monotonic() - began
            self.listener(AttackEnded(confirmed, found.attack.restarts, found.attack.steps, seconds))
        return confirmed

    def _incomplete(self, question: Question) -> IncompleteResult:
        def after_crown(result: IncompleteResult) -> bool:
            self._note_bounds(question, result)
            if self.config.attack.pgd_order != "middle":
                return False
            found = self._attack(question, ~result.proven)
            self.listener(StageStarted("incomplete", self.clock.left()))
            return found

        with self._phase("incomplete"):
            settings = incomplete_settings(self.config, self.clock.timeout_s)
            result = run_incomplete(question.problem, settings, self.listener, after_crown)
            self._note_bounds(question, result)
        return result

    def _note_bounds(self, question: Question, result: IncompleteResult) -> None:
        real = question.problem.clauses.rhs < torch.inf
        self.row_bounds = tuple(result.lower[real].tolist())

    def _search(self, question: Question, start: IncompleteResult) -> Outcome:
        """Branch and bound on the clauses that are open."""
        good = trusted(start.intermediate.boxes)
        if good is not None and not bool(good[question.problem.clauses.region[~start.proven]].all()):
            return Outcome(
                verdict=Verdict.UNKNOWN, stopped_by="bounds are NaN or cross: does the network overflow? try double_fp"
            )

        def on_progress(progress: BabProgress) -> None:
            self.progress = progress
            self.listener(
                SearchProgressed(
                    progress.round,
                    progress.domains_open,
                    progress.domains_visited,
                    progress.worst_bound,
                    progress.seconds,
                )
            )

        def on_candidate(x: np.ndarray) -> bool:
            self.counterexample = confirm(question.network, question.prop, x.reshape(-1))
            return self.counterexample is not None

        with self._phase("bab"), explained_out_of_memory(question.problem):
            found = search(question.problem, start, bab_settings(self.config), on_progress, on_candidate)
        self.progress = BabProgress(found.rounds, 0, found.domains_visited, found.worst_bound, found.seconds)
        if self.counterexample is not None:
            return self._violated("unsafe-bab")
        if found.closed:
            self.status = "safe"
            return Outcome(verdict=Verdict.HOLDS, stopped_by=found.stopped_by)
        verdict = Verdict.TIMEOUT if found.stopped_by == BAB_TIME_LIMIT else Verdict.UNKNOWN
        return Outcome(verdict=verdict, stopped_by=found.stopped_by)

    # -- bookkeeping ----------------------------------------------------------------------------------------------
    def _violated(self, status: str) -> Outcome:
        assert self.counterexample is not None
        self.status = status
        point = np.array([float(x) for x in self.counterexample.x])
        return Outcome(verdict=Verdict.VIOLATED, stopped_by="counterexample confirmed", counterexample_N=point)

    @contextmanager
    def _phase(self, stage: Stage) -> Iterator[None]:
        """Tell that a stage begins, and add its seconds to those of the stage; a stage within does not count twice."""
        self.listener(StageStarted(stage, self.clock.left()))
        before, began = sum(self.phases.values()), time.monotonic()
        try:
            yield
        finally:
            within = sum(self.phases.values()) - before
            self.phases[stage] += time.monotonic() - began - within

    def _search_use(self) -> SearchUse | None:
        if self.progress is None:
            return None
        seconds = max(self.phases["bab"], 1e-9)
        return SearchUse(
            domains_visited=self.progress.domains_visited,
            rounds=self.progress.round,
            domains_per_s=self.progress.domains_visited / seconds,
            worst_bound=self.progress.worst_bound,
        )


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Within: only algorithms that give the same bits on every run, if wanted."""
    if not wanted:  # asking torch for nothing would still cost it a second of imports
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
