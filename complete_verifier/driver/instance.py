"""One instance from its files to its verdict: attack, bounds, branch and bound, each timed.

Only two things make a verdict: `unsat` needs every clause of every region proved, `sat` a counterexample that the
original network confirms (onnxruntime on the file, a torch module by itself). Whatever else happens (limits, the
deadline, SIGTERM, numbers that overflow) ends as `unknown` or `timeout`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.errors import OutOfTime, RankUnreachable
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.numerics import full_precision
from complete_verifier.attack.confirm import confirm
from complete_verifier.attack.problems import Problems
from complete_verifier.attack.search import find_counterexample
from complete_verifier.bab.keeper import Keeper
from complete_verifier.bab.refined_search import refined_search
from complete_verifier.bab.settings import BabProgress, BabResult
from complete_verifier.config import Config
from complete_verifier.driver.choices import (
    attack_settings,
    bab_settings,
    bound_settings,
    incomplete_settings,
    refine_share,
)
from complete_verifier.driver.input_splits import notes, resolved, search_input, splits_inputs
from complete_verifier.driver.instances import Instance
from complete_verifier.driver.interrupts import DeadlinePassed, Interruption, Interrupts, Terminated
from complete_verifier.driver.keeping import Keeping
from complete_verifier.driver.mixed_integer import refined, solve_exactly
from complete_verifier.driver.questions import FileReader, Question, Reader, may_violate
from complete_verifier.driver.usage import placement, rank_use, resident_mib, start_measuring
from complete_verifier.driver.user_code import DEFAULTS, UserCode, has_no_verifier
from complete_verifier.events import AttackEnded, Listener, Note, ProblemLoaded, SearchProgressed, Stage, StageStarted
from complete_verifier.incomplete.regions import trusted
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.incomplete.stage import explained_out_of_memory, run_incomplete
from complete_verifier.input_bab.settings import InputBabProgress, InputBabResult
from complete_verifier.outcome import Outcome, Verdict
from complete_verifier.problem import Clock
from complete_verifier.reporting.report import InstanceReport, RankUse, SearchUse
from complete_verifier.spec.counterexample import Counterexample, format_counterexample
from complete_verifier.together import first_rank

_LOG = logging.getLogger(__name__)

# An attack ends after this share of the time left, so that a proof has a chance where there is no counterexample.
ATTACK_SHARE = 0.4
# With more clauses than this, an attack on all of them is short: what bounds leave open is attacked at length then.
MANY_CLAUSES, FIRST_ATTACK_SHARE = 200, 0.04
BAB_TIME_LIMIT = "time limit"  # the search's word for the deadline
# The status of a counterexample by the stage that found it; the attack's is the rest.
_UNSAFE: Mapping[Stage, str] = {"mip": "unsafe-mip", "bab": "unsafe-bab"}

OnBounds = Callable[[Question, IncompleteResult], None]


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
        run.outcome = run.cut_short(Verdict.TIMEOUT, f"time limit {clock.timeout_s:g} s")
    except DeadlinePassed:
        run.interrupted = True
        run.outcome = run.cut_short(Verdict.TIMEOUT, f"time limit {clock.timeout_s:g} s")
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
class _Run:
    """The state of one instance while it is decided; everything known so far is here when it is cut short."""

    config: Config
    instance: Instance
    context: DistributedContext
    clock: Clock
    listener: Listener
    read: Reader
    on_bounds: OnBounds
    keeping: Keeping | None
    phases: dict[str, float] = field(
        default_factory=lambda: {"load": 0.0, "attack": 0.0, "incomplete": 0.0, "bab": 0.0}
    )
    question: Question | None = None
    resident: float | None = None
    row_bounds: tuple[float, ...] = ()
    progress: BabProgress | InputBabProgress | None = None
    bab_seconds: float = 0.0
    stage: Stage = "load"  # the one that began last
    counterexample: Counterexample | None = None
    accepted: bool = False  # by the user's own attack.adv_verifier, where there is one
    text: str | None = None  # what the user's own saver wrote of it
    status: str = "unknown"
    outcome: Outcome | None = None
    stuck: bool = False
    interrupted: bool = False  # by the deadline or SIGTERM, at different places on different ranks

    def decide(self) -> Outcome:
        """All stages in order, until one settles it."""
        question = self._load()
        self.config = resolved(self.config, question.prop.n_inputs)
        saved = None if self.keeping is None else self.keeping.start(question.problem)
        if saved is not None:
            self._note_bounds(question, saved)
            self.on_bounds(question, saved)
            return self._search(question, saved, resumed=True)
        order = self.config.attack.pgd_order
        if self._example_violates(question) or self._anything_violates(question):
            return self._violated("unsafe-pgd")
        if order == "before" and self._attack(question, None, FIRST_ATTACK_SHARE if self._many else ATTACK_SHARE):
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
        match self.config.general.complete_verifier:
            case text if text.lstrip().startswith("Customized"):
                return self._users_verdict(question)
            case "mip":
                exact = self._mip(question, result)
                if exact is not None:
                    return exact
            case "bab-refine" if not splits_inputs(self.config):
                with self._phase("mip"), explained_out_of_memory(question.problem):
                    result = refined(question, result, self.config, self.listener)
                if bool(result.proven.all()):
                    self.status = "safe-incomplete-refine"
                    return Outcome(verdict=Verdict.HOLDS, stopped_by="bounds over refined neurons prove every clause")
        return self._search(question, result)

    def cut_short(self, verdict: Verdict, why: str) -> Outcome:
        """The outcome where the run ends from outside: what was reached by then counts, a counterexample too."""
        if self.outcome is not None:
            return self.outcome
        if self.counterexample is None or not (self.accepted or has_no_verifier(self.config)):
            return Outcome(verdict=verdict, stopped_by=why)
        return self._confirmed(_UNSAFE.get(self.stage, "unsafe-pgd"))

    def excused(self, reason: Interruption | None, error: RankUnreachable) -> Outcome:
        """The outcome after a collective broke off: another rank met the deadline or SIGTERM a moment earlier.

        Raises:
            RankUnreachable: that is not why.
        """
        if reason is None:
            raise error
        self.interrupted = True
        if isinstance(reason, Terminated):
            return self.cut_short(Verdict.UNKNOWN, "terminated by SIGTERM")
        return self.cut_short(Verdict.TIMEOUT, f"time limit {self.clock.timeout_s:g} s")

    def last_words(self, verdict: Verdict, why: str) -> InstanceReport:
        """What is to be written where the run is stuck in a collective or on its device; asks neither."""
        self.stuck = True
        return self.report(self.cut_short(verdict, why))

    def report(self, outcome: Outcome) -> InstanceReport:
        """Everything that is to be written about this run."""
        text = None
        if outcome.verdict is Verdict.VIOLATED:
            assert self.counterexample is not None
            own = format_counterexample(self.counterexample.x, [float(y) for y in self.counterexample.y])
            text = self.text or own
        return InstanceReport(
            index=self.instance.index,
            network=str(self.instance.network),
            specification=str(self.instance.specification),
            verdict=outcome.verdict,
            status=self._status_of(outcome),
            stopped_by=outcome.stopped_by,
            wall_s=self.clock.elapsed(),
            timeout_s=self.clock.timeout_s,
            counterexample=text,
            phases=self.phases,
            row_bounds=self.row_bounds,
            search=self._search_use(),
            placement=placement(self.context),
            ranks=self._ranks(),
        )

    def _ranks(self) -> tuple[RankUse, ...]:
        """What every rank used; this one's alone where the run was cut short, when nobody can be asked any more."""
        if self.stuck:
            return ()
        store = None if self.question is None else self.question.store
        mine = rank_use(self.context, store, self.resident)
        return (mine,) if self.interrupted else tuple(self.context.world.objects(mine))

    def _first_found(self) -> bool:
        """Make the first rank's counterexample everybody's; True if there is one. All ranks have to ask."""
        every = self.context.world.objects(self.counterexample)
        self.counterexample = next((found for found in every if found is not None), None)
        return self.counterexample is not None

    # -- stages ---------------------------------------------------------------------------------------------------
    def _load(self) -> Question:
        with self._phase("load"):
            _seed(self.config.general.seed)
            start_measuring(self.context.device)
            question = self.read(self.config, self.context, bound_settings(self.config), self.clock)
            self.config, question, tuned = self._user(question).tuned(self.config)
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

    def _user(self, question: Question) -> UserCode:
        return UserCode.of(question, self.config, self.instance.config_dir)

    def _example_violates(self, question: Question) -> bool:
        """Whether the example that a region was made around is a counterexample itself: it is misclassified."""
        if question.example is None or not may_violate(question, question.example):
            return False
        self.counterexample = confirm(question.judge, question.prop, question.example)
        if self._first_found():
            self.listener(Note("the example itself violates the property: the network misclassifies it"))
        return self.counterexample is not None

    def _anything_violates(self, question: Question) -> bool:
        """Whether a clause says nothing about the output, so that every input of its region is a counterexample."""
        clauses, region = question.problem.clauses, question.problem.region
        free = torch.isinf(clauses.rhs).all(1)
        if not bool(free.any()):
            return False
        point = region.center()[clauses.region[free][0]]
        self.counterexample = confirm(question.judge, question.prop, point.double().cpu().numpy().reshape(-1))
        return self._first_found()

    def _users_attack(self, question: Question) -> bool:
        """The user's own attack in place of ours."""
        began = time.monotonic()
        with self._phase("attack"):
            self.counterexample = self._user(question).attacked(self.config)
            confirmed = self._first_found()
        self.listener(AttackEnded(confirmed, 0, 0, time.monotonic() - began))
        return confirmed

    @property
    def _many(self) -> bool:
        """Whether there are so many clauses that most should be proved before they are attacked."""
        return self.question is not None and len(self.question.problem.clauses.region) > MANY_CLAUSES

    def _attack(self, question: Question, open_clauses: Tensor | None, share: float = ATTACK_SHARE) -> bool:
        """Look for a counterexample to the clauses that are open (None: to all); True if one is confirmed.

        ``share``: of the time left, that it may take.
        """
        problem = question.problem
        if self.config.attack.attack_func != DEFAULTS["attack.attack_func"]:
            return self._users_attack(question)
        if not problem.region.is_box:
            return False  # the attack projects onto boxes only
        limit = self.clock.left() * (1 - share)
        with self._phase("attack"), explained_out_of_memory(problem):
            began = time.monotonic()
            dtype, device = problem.clauses.c.dtype, self.context.device
            targets = Problems.from_property(question.searched, problem.graph.input_shape, dtype, device)
            if open_clauses is not None:
                targets = targets.select(open_clauses.nonzero().squeeze(-1))
            found = find_counterexample(
                problem.graph,
                question.prop,
                question.judge,
                attack_settings(self.config),
                device,
                lambda: self.clock.left() - limit,
                targets,
                problem.context,
            )
            self.counterexample = found.counterexample
            confirmed = self._first_found()
            seconds = time.monotonic() - began
            self.listener(AttackEnded(confirmed, found.attack.restarts, found.attack.steps, seconds))
        return confirmed

    def _incomplete(self, question: Question) -> IncompleteResult:
        def after_crown(result: IncompleteResult) -> bool:
            self._note_bounds(question, result)
            order = self.config.attack.pgd_order
            if order != "middle" and not (order == "before" and self._many):
                return False
            found = self._attack(question, ~result.proven)
            self.listener(StageStarted("incomplete", self.clock.left()))
            return found

        with self._phase("incomplete"):
            settings = incomplete_settings(self.config, self.clock.timeout_s)
            result = run_incomplete(question.problem, settings, self.listener, after_crown, question.given)
            self._note_bounds(question, result)
        self.on_bounds(question, result)
        return result

    def _note_bounds(self, question: Question, result: IncompleteResult) -> None:
        real = question.problem.clauses.rhs < torch.inf
        in_the_files_units = result.lower.double() / question.row_scale.to(result.lower.device)
        self.row_bounds = tuple(in_the_files_units[real].tolist())

    def _users_verdict(self, question: Question) -> Outcome:
        """What the user's own verifier says. A `sat` of it counts as unknown: it names no point that could be checked.

        Its proof is its own affair, and the status says whose it is.
        """
        with self._phase("bab"):
            status = self._user(question).verified(self.config)
        why = f"the user's verifier (general.complete_verifier) says {status}"
        if status.startswith("safe") or status == Verdict.HOLDS.value:
            self.status = status if status.startswith("safe") else "safe"
            return Outcome(verdict=Verdict.HOLDS, stopped_by=why)
        return Outcome(verdict=Verdict.UNKNOWN, stopped_by=why)

    def _mip(self, question: Question, start: IncompleteResult) -> Outcome | None:
        """Mixed-integer programs of the clauses that are open; None where there are no such programs."""
        self.status = "unknown-mip"
        with self._phase("mip"), explained_out_of_memory(question.problem):
            found, self.counterexample = solve_exactly(question, start, self.config, self.listener)
        if found is None:
            self.status = "unknown"
            return None
        if self._first_found():
            return self._violated("unsafe-mip")
        if bool(found.proven.all()):
            self.status = "safe-mip"
            return Outcome(verdict=Verdict.HOLDS, stopped_by=found.stopped_by)
        if found.out_of_time:
            return Outcome(verdict=Verdict.TIMEOUT, stopped_by=f"time limit {self.clock.timeout_s:g} s")
        return Outcome(verdict=Verdict.UNKNOWN, stopped_by=found.stopped_by)

    def _search(self, question: Question, start: IncompleteResult, resumed: bool = False) -> Outcome:
        """Branch and bound on the clauses that are open."""
        good = trusted(start.intermediate.boxes)
        if good is not None and not bool(good[question.problem.clauses.region[~start.proven]].all()):
            return Outcome(
                verdict=Verdict.UNKNOWN, stopped_by="bounds are NaN or cross: does the network overflow? try double_fp"
            )

        for line in notes(self.config):
            self.listener(Note(line))

        def on_progress(progress: BabProgress | InputBabProgress) -> None:
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
            self.counterexample = confirm(question.judge, question.prop, x.reshape(-1))
            return self.counterexample is not None

        found: BabResult | InputBabResult
        with self._phase("bab"), explained_out_of_memory(question.problem):
            if splits_inputs(self.config) and question.problem.region.is_box:
                if self.keeping is not None:
                    self.listener(Note("checkpoints are written where neurons are split, not where inputs are"))
                found, self.counterexample = search_input(question, start, self.config, self.listener, on_progress)
            else:
                keeping = self.keeping

                def keeper(begun: IncompleteResult) -> Keeper | None:
                    return None if keeping is None else keeping.keeper(question.problem, begun)

                found = refined_search(
                    question.problem,
                    start,
                    # --debug: `unsat` has to have leaves that cover the root
                    replace(bab_settings(self.config), record_ledger=_LOG.isEnabledFor(logging.DEBUG)),
                    refine_share(self.config),
                    on_progress,
                    on_candidate,
                    None if keeping is None else keeper,
                    resumed,
                )
        self.progress = BabProgress(found.rounds, 0, found.domains_visited, found.worst_bound, found.seconds)
        if self._first_found():
            return self._violated("unsafe-bab")
        if found.closed:
            self.status = "safe"
            return Outcome(verdict=Verdict.HOLDS, stopped_by=found.stopped_by)
        verdict = Verdict.TIMEOUT if found.stopped_by == BAB_TIME_LIMIT else Verdict.UNKNOWN
        return Outcome(verdict=verdict, stopped_by=found.stopped_by)

    # -- bookkeeping ----------------------------------------------------------------------------------------------
    def _violated(self, status: str) -> Outcome:
        assert self.counterexample is not None and self.question is not None
        user = self._user(self.question)
        found, world = self.counterexample, self.context.world
        # user code decides once for all ranks, and writes once
        if not (has_no_verifier(self.config) or first_rank(world, lambda: user.accepted(self.config, found))):
            self.counterexample = None
            return Outcome(verdict=Verdict.UNKNOWN, stopped_by="attack.adv_verifier refuses the counterexample")
        self.accepted = True
        self.text = user.saved(self.config, found) if self.context.rank == 0 else None
        return self._confirmed(status)

    def _confirmed(self, status: str) -> Outcome:
        assert self.counterexample is not None
        self.status = status
        point = np.array([float(x) for x in self.counterexample.x])
        return Outcome(verdict=Verdict.VIOLATED, stopped_by="counterexample confirmed", counterexample_N=point)

    def _status_of(self, outcome: Outcome) -> str:
        """The run's status, or without a verdict its unknown one: a stage that was cut short may have set another."""
        decided = outcome.verdict in (Verdict.HOLDS, Verdict.VIOLATED)
        return self.status if decided or self.status.startswith("unknown") else "unknown"

    @contextmanager
    def _phase(self, stage: Stage) -> Iterator[None]:
        """Tell that a stage begins, and add its seconds to those of the stage; a stage within does not count twice."""
        self.stage = stage
        self.context.at(f"stage {stage}", patient=stage == "mip")
        self.listener(StageStarted(stage, self.clock.left()))
        before, began = sum(self.phases.values()), time.monotonic()
        try:
            yield
        finally:
            within = sum(self.phases.values()) - before
            self.phases[stage] = self.phases.get(stage, 0.0) + time.monotonic() - began - within

    def _search_use(self) -> SearchUse | None:
        if self.progress is None:
            return None
        before = 0.0 if self.keeping is None else self.keeping.seconds_before  # of the run that is resumed
        seconds = max(self.phases["bab"] + before, 1e-9)
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
