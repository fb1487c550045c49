"""The two ways in which a run ends from outside: the deadline, and SIGTERM. Both unwind the stage at work.

Stages look at the clock themselves; the alarm is for what cannot: a long pass, a library, an import. A signal's handler
runs between two steps of the interpreter, so the longest single tensor operation is what remains of an overrun.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Stages end by themselves at the deadline and have better results then: the alarm comes a little later.
ALARM_DELAY = 0.5
# Timers of some systems take no more; nobody waits for that one.
_LONGEST_ALARM = 1e8


class Interruption(BaseException):
    """Ends a run from outside. Not an `Exception`, so that no library takes it for a failure of its own."""


class DeadlinePassed(Interruption):
    """The deadline passed and the stage at work did not notice."""


class Terminated(Interruption):
    """SIGTERM arrived."""


class Interrupts:
    """Turns SIGTERM and the alarm into exceptions while a run is at work, and holds them back while it writes."""

    def __init__(self) -> None:
        self.terminated = False
        self._shields = 0

    @contextmanager
    def installed(self) -> Iterator[Interrupts]:
        """Handle the signals within. In a thread, where Python allows no handlers, nothing is changed."""
        if threading.current_thread() is not threading.main_thread():
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
    def deadline(self, seconds_left: float) -> Iterator[None]:
        """Within: `DeadlinePassed` is raised soon after so many seconds, wherever the run is then."""
        if threading.current_thread() is not threading.main_thread() or seconds_left > _LONGEST_ALARM:
            yield
            return
        signal.setitimer(signal.ITIMER_REAL, max(seconds_left + ALARM_DELAY, 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Within nothing is raised, so that what is written is written whole. SIGTERM is remembered."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True
        if self._shields == 0:
            raise Terminated

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self._shields == 0:
            raise DeadlinePassed
