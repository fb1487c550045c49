"""All that is known of an instance while it is decided, so that a run can be cut short anywhere and still report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from auto_LiRPA.errors import RankUnreachable
from auto_LiRPA.parallel.context import DistributedContext
from complete_verifier.bab.settings import BabProgress
from complete_verifier.config import Config
from complete_verifier.driver.instances import Instance
from complete_verifier.driver.interrupts import Interruption, Terminated
from complete_verifier.driver.keeping import Keeping
from complete_verifier.driver.questions import Question, Reader
from complete_verifier.driver.usage import placement, rank_use
from complete_verifier.driver.user_code import UserCode, has_no_verifier
from complete_verifier.events import Listener, Stage, StageStarted
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.input_bab.settings import InputBabProgress
from complete_verifier.outcome import Outcome, Verdict
from complete_verifier.problem import Clock
from complete_verifier.reporting.report import InstanceReport, RankUse, SearchUse
from complete_verifier.spec.counterexample import Counterexample, format_counterexample

# The status of a counterexample by the stage that found it; the attack's is the rest.
_UNSAFE: Mapping[Stage, str] = {"mip": "unsafe-mip", "bab": "unsafe-bab"}

OnBounds = Callable[[Question, IncompleteResult], None]


@dataclass(slots=True)
class RunState:
    """One instance on its way. Stages write what they find here, and nothing else is asked when it is cut short."""

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
    stage: Stage = "load"  # the one that began last
    counterexample: Counterexample | None = None
    accepted: bool = False  # by the user's own attack.adv_verifier, where there is one
    text: str | None = None  # what the user's own saver wrote of it
    status: str = "unknown"
    outcome: Outcome | None = None
    stuck: bool = False
    interrupted: bool = False  # by the deadline or SIGTERM, at different places on different ranks

    # -- ends -------------------------------------------------------------------------------------------------------
    @property
    def time_limit(self) -> str:
        """The deadline's words."""
        return f"time limit {self.clock.timeout_s:g} s"

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
        return self.cut_short(Verdict.TIMEOUT, self.time_limit)

    def last_words(self, verdict: Verdict, why: str) -> InstanceReport:
        """What is to be written where the run is stuck in a collective or on its device; asks neither."""
        self.stuck = True
        return self.report(self.cut_short(verdict, why))

    def violated(self, status: str) -> Outcome:
        """The outcome with a counterexample, if the user's own verifier lets it stand."""
        assert self.counterexample is not None and self.question is not None
        user, found = self.user(self.question), self.counterexample
        if not user.accepted(self.config, found):
            self.counterexample = None
            return Outcome(verdict=Verdict.UNKNOWN, stopped_by="attack.adv_verifier refuses the counterexample")
        self.accepted = True
        self.text = user.saved(self.config, found)
        return self._confirmed(status)

    def _confirmed(self, status: str) -> Outcome:
        assert self.counterexample is not None
        self.status = status
        point = np.array([float(x) for x in self.counterexample.x])
        return Outcome(verdict=Verdict.VIOLATED, stopped_by="counterexample confirmed", counterexample_N=point)

    # -- the report ---------------------------------------------------------------------------------------------------
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

    def _status_of(self, outcome: Outcome) -> str:
        """The run's status, or without a verdict its unknown one: a stage that was cut short may have set another."""
        decided = outcome.verdict in (Verdict.HOLDS, Verdict.VIOLATED)
        return self.status if decided or self.status.startswith("unknown") else "unknown"

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

    # -- what stages share --------------------------------------------------------------------------------------------
    @contextmanager
    def phase(self, stage: Stage) -> Iterator[None]:
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

    def first_found(self) -> bool:
        """Make the first rank's counterexample everybody's; True if there is one. All ranks have to ask."""
        every = self.context.world.objects(self.counterexample)
        self.counterexample = next((found for found in every if found is not None), None)
        return self.counterexample is not None

    def user(self, question: Question) -> UserCode:
        """The user's own code."""
        return UserCode.of(question, self.config, self.instance.config_dir)
