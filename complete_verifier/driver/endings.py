"""How instances of a list end that give no report of their own, and what ends the list from outside."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from complete_verifier.driver.boundary import BAD_INPUT, INTERNAL, OK
from complete_verifier.driver.instances import Instance
from complete_verifier.driver.interrupts import Interrupts
from complete_verifier.driver.tasks import Failure
from complete_verifier.events import SearchProgressed
from complete_verifier.outcome import Verdict
from complete_verifier.reporting.report import InstanceReport, SearchUse
from complete_verifier.reporting.rows import BAD_INPUT_STATUS, CRASH_STATUS, ERROR, Row
from complete_verifier.sweep.scheduler import Finish


@dataclass(slots=True)
class State:
    """An instance at work: its last word of progress, and its answer when that is there."""

    instance: Instance
    started: float
    timeout_s: float
    progress: SearchProgressed | None = None
    report: InstanceReport | None = None
    failure: Failure | None = None


def without_verdict(state: State, finish: Finish) -> InstanceReport:
    """The report of an instance whose process could not give one."""
    verdict, status, stopped_by, error = Verdict.UNKNOWN, CRASH_STATUS, ERROR, None
    if finish.overran:
        verdict, status = Verdict.TIMEOUT, "unknown"
        stopped_by = f"time limit {state.timeout_s:g} s; its process did not end by itself and was killed"
    elif state.failure is not None:
        error = state.failure.message
        status = BAD_INPUT_STATUS if state.failure.code == BAD_INPUT else CRASH_STATUS
    else:
        error = f"internal error: {_death(finish)}"
    progress = state.progress
    return InstanceReport(
        index=state.instance.index,
        network=str(state.instance.network),
        specification=str(state.instance.specification),
        verdict=verdict,
        status=status,
        stopped_by=stopped_by,
        wall_s=finish.seconds,
        timeout_s=state.timeout_s,
        error=error,
        search=None if progress is None else _search_use(progress),
    )


def _search_use(progress: SearchProgressed) -> SearchUse:
    rate = progress.domains_visited / max(progress.seconds, 1e-9)
    return SearchUse(progress.domains_visited, progress.round, rate, progress.worst)


def _death(finish: Finish) -> str:
    """Why a process ended without a word."""
    if finish.ended is None:
        return "its process was lost twice (out of memory?)"
    code = finish.ended.exit_code
    last = next((line.strip() for line in reversed(finish.output.splitlines()) if line.strip()), "")
    if code >= 0:
        return f"its process ended with code {code}{f': {last}' if last else ''}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    why = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"its process was ended by {name}{why} at {finish.ended.peak_mib:.0f} MiB"


@contextmanager
def signals(interrupts: Interrupts) -> Iterator[Callable[[], int | None]]:
    """Within, Ctrl-C asks for the end like SIGTERM; a second one ends at once. Yields: which signal came, if any."""
    came: list[int] = []

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    def signalled() -> int | None:
        return int(signal.SIGTERM) if interrupts.terminated else (came[0] if came else None)

    if threading.current_thread() is not threading.main_thread():
        yield signalled
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield signalled
    finally:
        signal.signal(signal.SIGINT, before)


def exit_code(row: Row) -> int:
    if row.verdict != ERROR:
        return OK
    return BAD_INPUT if row.status == BAD_INPUT_STATUS else INTERNAL
