"""The two ways in which a run ends from outside: the deadline, and SIGTERM. Both unwind the stage at work.

Stages look at the clock themselves; the alarm is for what cannot: a long pass, a library. A signal's handler runs
between two steps of the interpreter, so the longest single tensor operation is what remains of an overrun, or an
import: a package of which half stayed behind could not be used by this process any more.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from complete_verifier.outcome import Verdict
from complete_verifier.reporting.report import InstanceReport

# Stages end by themselves at the deadline and have better results then: the alarm comes a little later.
ALARM_DELAY = 0.5
# Where an exception would do harm (see `_shielded`) the alarm rings again after so many seconds, so often at most.
RING_AGAIN, MOST_RINGS = 0.1, 100
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
        self._outside = 0  # shielded frames of the caller, which are none of ours
        self._rings = 0
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
        self._outside, self._rings = _shielded(sys._getframe()), 0
        self._exposed = True
        if timer:
            signal.setitimer(signal.ITIMER_REAL, max(seconds_left + ALARM_DELAY, 1e-3), RING_AGAIN)
        try:
            yield
        finally:
            self._exposed = False
            if timer or self.terminated:  # SIGTERM may have started one
                signal.setitimer(signal.ITIMER_REAL, 0.0)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True
        if self._postponed(frame):
            signal.setitimer(signal.ITIMER_REAL, RING_AGAIN, RING_AGAIN)
        else:
            self._raise(Terminated())

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if not self._postponed(frame):
            self._raise(Terminated() if self.terminated else DeadlinePassed())

    def _postponed(self, frame: FrameType | None) -> bool:
        self._rings += 1
        return self._exposed and self._rings <= MOST_RINGS and _shielded(frame) > self._outside

    def _raise(self, interruption: Interruption) -> None:
        """Once only: what unwinds is not interrupted again."""
        if self._exposed:
            self._exposed = False
            raise interruption


def _shielded(frame: FrameType | None) -> int:
    """How many frames an exception would do harm in: imports, which break, and finalisers, which drop it."""
    found = 0
    while frame is not None:
        code = frame.f_code
        found += code.co_name == "__del__" or code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    return found


def _no_excuse() -> Interruption | None:
    return None


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
