"""Keeps so many processes at work until the queue is empty, and says how each instance ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from complete_verifier.sweep.messages import Ended
from complete_verifier.sweep.processes import Child, Processes, ServerLost
from complete_verifier.sweep.queue import WorkQueue

# A process that is this much over its limit does not look at the clock any more (a library call that hangs).
OVERRUN_S = 5.0
_LOOK_AT_SIGNALS_S = 0.2
_TRIES = 2


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is started for. ``limit_s``: when it should have ended by itself."""

    task: object
    limit_s: float


@dataclass(frozen=True, slots=True)
class Finish:
    """How a process ended. ``ended`` is None if it was lost with the process that it was forked from."""

    ended: Ended | None
    overran: bool
    output: str
    seconds: float


class Owner(Protocol):
    """Who asked for the work; called from the one thread of the scheduler."""

    def job(self, index: int) -> Job:
        """What to run for this index; called when it starts."""

    def message(self, index: int, message: object) -> None:
        """The process said something."""

    def finished(self, index: int, finish: Finish) -> None:
        """The process is gone, and every message of it has been handed over."""


@dataclass(slots=True, eq=False)
class _Running:
    index: int
    child: Child
    began: float
    limit_s: float
    overran: bool = False


class Scheduler:
    """Runs what a queue hands out, ``slots`` processes at a time."""

    def __init__(self, queue: WorkQueue, owner: Owner, processes: Processes, slots: int) -> None:
        self._queue, self._owner, self._processes, self._slots = queue, owner, processes, slots
        self._running: list[_Running] = []
        self._lost: dict[int, int] = {}

    def run(self, stopped: Callable[[], bool]) -> None:
        """Until the queue is empty, or ``stopped`` says so: then those at work are left to be ended with their context.

        Raises:
            WorkerFailed: no process can be started.
        """
        while not stopped():
            try:
                self._fill()
                if not self._running:
                    return
                self._processes.wait([run.child for run in self._running], _LOOK_AT_SIGNALS_S)
                self._hear()
                self._end_overrun()
            except ServerLost:
                self._start_over()

    def _fill(self) -> None:
        while len(self._running) < self._slots:
            index = self._queue.take()
            if index is None:
                return
            job = self._owner.job(index)
            began = time.monotonic()
            try:
                child = self._processes.start(job.task)
            except ServerLost:
                self._give_back(index, began)
                raise
            self._running.append(_Running(index, child, began, job.limit_s))

    def _hear(self) -> None:
        for run in list(self._running):
            for message in run.child.messages():
                self._owner.message(run.index, message)
            if run.child.silent:
                ended, output = self._processes.reap(run.child)
                self._running.remove(run)
                self._owner.finished(run.index, Finish(ended, run.overran, output, time.monotonic() - run.began))

    def _end_overrun(self) -> None:
        now = time.monotonic()
        for run in self._running:
            if not run.overran and now - run.began > run.limit_s + OVERRUN_S:
                run.overran = True
                run.child.kill()

    def _start_over(self) -> None:
        """The process that was forked from is gone: what ran goes back to the queue, but not for ever."""
        for run in reversed(self._running):
            self._give_back(run.index, run.began)
        self._running.clear()
        self._processes.restart()

    def _give_back(self, index: int, began: float) -> None:
        self._lost[index] = self._lost.get(index, 0) + 1
        if self._lost[index] < _TRIES:
            self._queue.put_back(index)
        else:
            self._owner.finished(index, Finish(None, False, "", time.monotonic() - began))
