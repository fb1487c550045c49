"""One instance decided by this process, alone or as one of several ranks: always a report, whatever cuts it short."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from complete_verifier.config import LoadedConfig
from complete_verifier.driver.instances import Instance
from complete_verifier.driver.interrupts import DeadlinePassed, Interrupts, Terminated
from complete_verifier.driver.seat import restarted, speaks
from complete_verifier.driver.start_up import paused_collection
from complete_verifier.events import Listener
from complete_verifier.outcome import Verdict
from complete_verifier.reporting.report import InstanceReport

if TYPE_CHECKING:
    from auto_LiRPA.parallel.context import DistributedContext
    from complete_verifier.driver.questions import Reader
    from complete_verifier.driver.rank import Rank

_LEAVE_S = 2.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be decided, until when, and who hears of it. ``rank``: this process as one of several."""

    loaded: LoadedConfig
    instance: Instance
    interrupts: Interrupts
    started: float
    timeout_s: float
    listener: Listener
    line: Callable[[str], None]
    rank: Rank | None = None

    def made(self, write: Callable[[InstanceReport], None], read: Reader | None, keeps: bool = True) -> InstanceReport:
        """Decide it. The report is given to ``write``, on rank 0 only; if need be, by the thread that watches.

        Args:
            read: makes the question; None: the files that are named.
            keeps: checkpoints are written where the settings ask for them.

        Raises:
            VerifierError: bad input, or another rank is lost; nothing is written then.
        """
        rank = self.rank
        if rank is None:
            report = self._decided(read, keeps)
            if speaks():
                write(report)
            return report
        rank.prepared(lambda verdict, why: write(self._last_words(verdict, why)))
        self.interrupts.excuse = rank.excuse
        report = self._decided(read, keeps)
        if self.interrupts.terminated:
            rank.check_complete()
        rank.take_turn()
        if rank.speaks:
            write(report)
        return report

    def _decided(self, read: Reader | None, keeps: bool) -> InstanceReport:
        """The report, also where the run is cut short before its first stage, while libraries are imported."""
        try:
            with self.interrupts.exposed(self.started + self.timeout_s - time.monotonic()):
                with paused_collection():
                    from complete_verifier.driver.contexts import make_context
                    from complete_verifier.driver.instance import run_instance
                    from complete_verifier.driver.keeping import plan_keeping
                    from complete_verifier.driver.same_input import check_same_input
                    from complete_verifier.problem import Clock

                context, note = make_context(self.loaded, None if self.rank is None else self.rank.watch)
                check_same_input(context, self.loaded, self.instance)
            if note is not None:
                self.line(note)
            keeping = plan_keeping(self.loaded, restarted()) if keeps else None
            if keeping is not None:
                self.line(keeping.line())
            config, clock = self.loaded.config, Clock(self.started, self.timeout_s)
            report = run_instance(
                config, self.instance, context, clock, self.listener, self.interrupts, read, keeping=keeping
            )
        except DeadlinePassed:
            return self._empty_report(Verdict.TIMEOUT, f"time limit {self.timeout_s:g} s")
        except Terminated:
            return self._empty_report(Verdict.UNKNOWN, "terminated by SIGTERM")
        if self.rank is not None and not self.rank.cut_short:
            _leave(context)
        return report

    def _last_words(self, verdict: Verdict, why: str) -> InstanceReport:
        """What is known where the run cannot come to its end. A counterexample that was confirmed counts."""
        known = None if self.interrupts.last_words is None else self.interrupts.last_words(verdict, why)
        return known or self._empty_report(verdict, why)

    def _empty_report(self, verdict: Verdict, why: str) -> InstanceReport:
        return InstanceReport(
            index=self.instance.index,
            network=str(self.instance.network),
            specification=str(self.instance.specification),
            verdict=verdict,
            status="unknown",
            stopped_by=why,
            wall_s=time.monotonic() - self.started,
            timeout_s=self.timeout_s,
        )


def _leave(context: DistributedContext) -> None:
    """Leave the other ranks. Where the library does not come back from that, the end of the process does it."""
    leaving = threading.Thread(target=context.close, name="leave", daemon=True)
    leaving.start()
    leaving.join(_LEAVE_S)
