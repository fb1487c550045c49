"""One instance from its files to its verdict: attack, bounds, branch and bound, each timed.

Only two things make a verdict: `unsat` needs every clause of every region proved, `sat` a counterexample that the
original network confirms (onnxruntime on the file, a torch module by itself). Whatever else happens (limits, the
deadline, SIGTERM, numbers that overflow) ends as `unknown` or `timeout`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from auto_LiRPA.errors import OutOfTime, RankUnreachable
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.numerics import full_precision
from complete_verifier.config import Config
from complete_verifier.driver.attack_stage import (
    ATTACK_SHARE,
    FIRST_ATTACK_SHARE,
    attack,
    has_many_clauses,
    violates_at_once,
)
from complete_verifier.driver.choices import bound_settings, incomplete_settings
from complete_verifier.driver.input_splits import resolved
from complete_verifier.driver.instances import Instance
from complete_verifier.driver.interrupts import DeadlinePassed, Interrupts, Terminated
from complete_verifier.driver.keeping import Keeping
from complete_verifier.driver.questions import FileReader, Question, Reader
from complete_verifier.driver.run_state import OnBounds, RunState
from complete_verifier.driver.search_stage import decided, search
from complete_verifier.driver.usage import resident_mib, start_measuring
from complete_verifier.events import Listener, Note, ProblemLoaded, StageStarted
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.outcome import Outcome, Verdict
from complete_verifier.problem import Clock
from complete_verifier.reporting.report import InstanceReport
from complete_verifier.shortage import LOADING, explained_out_of_memory


def _ignore_bounds(question: Question, result: IncompleteResult) -> None:
    """The listener to bounds that nobody needs to pass by hand."""


def _ignore_events(event: object) -> None:
    """The listener of ranks that say nothing."""


def run_instance(
    config: Config,
    instance: Instance,
    context: DistributedContext,
    clock: Clock,
    listener: Listener,
    interrupts: Interrupts,
    read: Reader | None = None,
    on_bounds: OnBounds = _ignore_bounds,
    keeping: Keeping | None = None,
) -> InstanceReport:
    """Decide one instance before the clock's deadline.

    Args:
        read: where the question comes from; None: the instance's files. Otherwise these are names for the report.
        on_bounds: told the question and what the incomplete stage knows of it, as soon as it does.
        keeping: where checkpoints go, and the one to go on from: attack and bounds are skipped then.

    Raises:
        UserError: bad input, before any long work.
    """
    read = read or FileReader(instance.network, instance.specification, instance.config_dir)
    if context.rank > 0:
        listener = _ignore_events  # rank 0 speaks for all
    run = _Run(config, instance, replace(context, seconds_left=clock.left), clock, listener, read, on_bounds, keeping)
    interrupts.last_words = run.last_words
    try:
        with interrupts.exposed(clock.left()), full_precision(), _deterministic(config.general.deterministic):
            run.outcome = run.decide()
    except OutOfTime:  # all ranks agreed on it
        run.outcome = run.cut_short(Verdict.TIMEOUT, run.time_limit)
    except DeadlinePassed:
        run.interrupted = True
        run.outcome = run.cut_short(Verdict.TIMEOUT, run.time_limit)
    except Terminated:
        run.interrupted = True
        run.outcome = run.cut_short(Verdict.UNKNOWN, "terminated by SIGTERM")
    except RankUnreachable as error:
        run.outcome = run.excused(interrupts.excuse(), error)
    try:
        return run.report(run.outcome)
    except RankUnreachable as error:
        run.outcome = run.excused(interrupts.excuse(), error)
        return run.report(run.outcome)


@dataclass(slots=True)
class _Run(RunState):
    """The stages of one instance in their order."""

    def decide(self) -> Outcome:
        """All stages in order, until one settles it."""
        question = self._load()
        self.config = resolved(self.config, question.prop.n_inputs)
        saved = None if self.keeping is None else self.keeping.start(question.problem)
        if saved is not None:
            self._note_bounds(question, saved)
            self.on_bounds(question, saved)
            return search(self, question, saved, resumed=True)
        order, many = self.config.attack.pgd_order, has_many_clauses(question)
        if violates_at_once(self, question):
            return self.violated("unsafe-pgd")
        if order == "before" and attack(self, question, None, FIRST_ATTACK_SHARE if many else ATTACK_SHARE):
            return self.violated("unsafe-pgd")
        result = self._incomplete(question)
        if self.counterexample is not None:
            return self.violated("unsafe-pgd")
        if bool(result.proven.all()):
            self.status = "safe-incomplete"
            return Outcome(verdict=Verdict.HOLDS, stopped_by="bounds prove every clause")
        if order == "after" and attack(self, question, ~result.proven):
            return self.violated("unsafe-pgd")
        return decided(self, question, result)

    def _load(self) -> Question:
        with self.phase("load"), explained_out_of_memory(self.context, "reading the network", LOADING):
            _seed(self.config.general.seed)
            start_measuring(self.context.device)
            question = self.read(self.config, self.context, bound_settings(self.config), self.clock)
            self.config, question, tuned = self.user(question).tuned(self.config)
            if tuned:
                self.listener(Note(f"general.adhoc_tuning sets {', '.join(tuned)} for this instance"))
            self.question, self.resident = question, resident_mib(self.context.device)
        graph, prop = question.problem.graph, question.prop
        self.listener(
            ProblemLoaded(
                network=str(self.instance.network),
                nodes=len(graph.nodes),
                inputs=prop.n_inputs,
                outputs=prop.n_outputs,
                regions=len(prop.regions),
                clauses=len(question.problem.clauses.region),
            )
        )
        return question

    def _incomplete(self, question: Question) -> IncompleteResult:
        def after_crown(result: IncompleteResult) -> bool:
            self._note_bounds(question, result)
            order = self.config.attack.pgd_order
            if order != "middle" and not (order == "before" and has_many_clauses(question)):
                return False
            found = attack(self, question, ~result.proven)
            self.listener(StageStarted("incomplete", self.clock.left()))
            return found

        with self.phase("incomplete"):
            settings = incomplete_settings(self.config, self.clock.timeout_s)
            result = run_incomplete(question.problem, settings, self.listener, after_crown, question.given)
            self._note_bounds(question, result)
        self.on_bounds(question, result)
        return result

    def _note_bounds(self, question: Question, result: IncompleteResult) -> None:
        real = question.problem.clauses.rhs < torch.inf
        in_the_files_units = result.lower.double() / question.row_scale.to(result.lower.device)
        self.row_bounds = tuple(in_the_files_units[real].tolist())


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
