"""The two ways in which a run ends from outside: the deadline, and SIGTERM. Both unwind the stage at work.

Stages look at the clock themselves; the alarm is for what cannot: a long pass, a library, an import. A signal's handler
runs between two steps of the interpreter, so the longest single tensor operation is what remains of an overrun.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from complete_verifier.outcome import Verdict
from complete_verifier.reporting.report import InstanceReport

# Stages end by themselves at the deadline and have better results then: the alarm comes a little later.
ALARM_DELAY = 0.5
# Timers of some systems take no more; nobody waits for that one.
_LONGEST_ALARM = 1e8


LastWords = Callable[[Verdict, str], InstanceReport]


class Interruption(BaseException):
    """Ends a run from outside. Not an `Exception`, so that no library takes it for a failure of its own."""


class DeadlinePassed(Interruption):
    """The deadline passed and the stage at work did not notice."""


class Terminated(Interruption):
    """SIGTERM arrived."""


class Interrupts:
    """Turns SIGTERM and the alarm into exceptions, but only where a run is exposed to them.

    Elsewhere (while files are prepared and written) SIGTERM is remembered, and raised at the next exposure.
    ``last_words``: the report of a run that is stuck in a stage, by verdict and reason; it asks nothing of that stage.
    ``excuse``: says, after a collective broke off, whether another rank met one of the two a moment earlier.
    """

    def __init__(self) -> None:
        self.terminated = False
        self._exposed = False
        self.excuse: Callable[[], Interruption | None] = _no_excuse
        self.last_words: LastWords | None = None

    @contextmanager
    def installed(self) -> Iterator[Interrupts]:
        """Handle the signals within. In a thread, where Python allows no handlers, nothing is changed."""
        if not _in_main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGALRM, self._on_alarm)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def exposed(self, seconds_left: float) -> Iterator[None]:
        """Within, `Terminated` and, soon after so many seconds, `DeadlinePassed` are raised wherever the run is."""
        if self.terminated:
            raise Terminated
        timer = _in_main_thread() and seconds_left < _LONGEST_ALARM
        self._exposed = True
        if timer:
            signal.setitimer(signal.ITIMER_REAL, max(seconds_left + ALARM_DELAY, 1e-3))
        try:
            yield
        finally:
            self._exposed = False
            if timer:
                signal.setitimer(signal.ITIMER_REAL, 0.0)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True
        self._raise(Terminated())

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        self._raise(DeadlinePassed())

    def _raise(self, interruption: Interruption) -> None:
        """Once only: what unwinds is not interrupted again."""
        if self._exposed:
            self._exposed = False
            raise interruption


def _no_excuse() -> Interruption | None:
    return None


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
