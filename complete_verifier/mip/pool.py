"""Solver processes side by side: each holds the program at hand and solves one task after the other."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import numpy as np

from complete_verifier.mip.messages import Answer, Ending, Kind, Task, receive, send
from complete_verifier.mip.program import Program

# -P and an explicit root: neither the folder that the user happens to be in nor the user's own script is imported.
_START = "import sys; sys.path.insert(0, sys.argv[1]); from complete_verifier.mip.worker import main; main()"
_ROOT = str(Path(__file__).resolve().parents[2])
# The solver looks at its clock now and then only; a process that is later than this is killed.
_GRACE = 1.0
# Time that a new process may take to import its libraries, on a busy machine.
_START_UP = 6.0
# Before the deadline: time for answers to arrive and to be used.
_RESERVE = 0.3

Wanted = Callable[[Task], bool]


@dataclass(slots=True)
class _Solver:
    """One process. ``task``: its work; ``due``: when it is killed; ``holds``: its program; ``fresh``: no answer yet."""

    process: subprocess.Popen[bytes]
    task: Task | None = None
    due: float = 0.0
    holds: int = -1
    fresh: bool = True


class SolverPool:
    """At most ``processes`` solver processes, started when there is work for them. A context: none outlives it."""

    def __init__(self, processes: int | None, seconds_left: Callable[[], float]) -> None:
        self.processes = cores() if processes is None else max(1, processes)
        self._left = seconds_left
        self._solvers: list[_Solver] = []
        self._programs = 0

    def __enter__(self) -> SolverPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill all processes."""
        while self._solvers:
            self._kill(self._solvers[-1])

    def start(self, count: int) -> None:
        """Start processes for so many tasks ahead of time, so that they import while the run does other things."""
        while len(self._solvers) < min(count, self.processes):
            self._start()

    def solve(self, program: Program, tasks: Sequence[Task], wanted: Wanted | None = None) -> Iterator[Answer]:
        """Answers in the order in which they come; a task whose process died or was killed has ending FAILED or LIMIT.

        Args:
            wanted: asked just before a task would start; one that is not wanted any more is left out.

        Stops when the seconds are used up, and leaves out what is not done by then. Leaving the iterator early kills
        the processes that are at work.
        """
        self._programs += 1
        waiting = list(reversed(tasks))
        self.start(len(tasks))
        try:
            while waiting or any(s.task is not None for s in self._solvers):
                if self._left() <= 0:
                    return
                self._hand_out(program, waiting, wanted)
                yield from self._collect()
        finally:
            for solver in [s for s in self._solvers if s.task is not None]:
                self._kill(solver)

    def _hand_out(self, program: Program, waiting: list[Task], wanted: Wanted | None) -> None:
        """Give every idle process the next task."""
        self.start(len(waiting))
        for solver in [s for s in self._solvers if s.task is None]:
            while waiting and wanted is not None and not wanted(waiting[-1]):
                waiting.pop()
            if not waiting:
                return
            seconds = min(waiting[-1].seconds, self._left() - _RESERVE)
            if seconds <= 0:
                waiting.clear()
                return
            self._give(solver, program, replace(waiting.pop(), seconds=seconds))

    def _give(self, solver: _Solver, program: Program, task: Task) -> None:
        stream = cast(IO[bytes], solver.process.stdin)
        solver.task = task
        try:
            if solver.holds != self._programs:
                send(stream, {"kind": Kind.PROGRAM, **_arrays(program)})
                solver.holds = self._programs
            send(stream, {"kind": Kind.TASK, **{item.name: getattr(task, item.name) for item in fields(task)}})
            solver.due = time.monotonic() + task.seconds + _GRACE + (_START_UP if solver.fresh else 0.0)
        except BrokenPipeError:
            solver.due = 0.0  # it died; that is noticed when its answer is looked for

    def _collect(self) -> Iterator[Answer]:
        """Wait for one or more answers, for a process that is late, or for the deadline."""
        busy = [s for s in self._solvers if s.task is not None]
        if not busy:
            return
        with selectors.DefaultSelector() as selector:
            for solver in busy:
                selector.register(cast(IO[bytes], solver.process.stdout), selectors.EVENT_READ, solver)
            wait = min(min(s.due for s in busy) - time.monotonic(), self._left())
            ready: list[_Solver] = [key.data for key, _ in selector.select(max(0.0, wait))]
        now = time.monotonic()
        for solver in busy:
            task = solver.task
            assert task is not None
            if solver in ready:
                message = receive(cast(IO[bytes], solver.process.stdout))
                solver.task, solver.fresh = None, False
                if message is None:
                    self._kill(solver)
                    yield _nothing(task, Ending.FAILED)
                else:
                    yield _answer(message)
            elif now >= solver.due:
                self._kill(solver)
                yield _nothing(task, Ending.LIMIT)

    def _start(self) -> None:
        command = [sys.executable, "-P", "-c", _START, _ROOT]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._solvers.append(_Solver(process))

    def _kill(self, solver: _Solver) -> None:
        self._solvers.remove(solver)
        solver.process.kill()
        for stream in (solver.process.stdin, solver.process.stdout):
            with suppress(BrokenPipeError):  # what was not sent yet
                cast(IO[bytes], stream).close()
        solver.process.wait()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _arrays(program: Program) -> dict[str, Any]:
    return {
        "data": program.rows.data,
        "indices": program.rows.indices,
        "indptr": program.rows.indptr,
        "limits": program.limits,
        "equality": program.equality,
        "integer": program.integer,
    }


def _nothing(task: Task, ending: Ending) -> Answer:
    return Answer(task.number, ending, -np.inf, np.inf, np.zeros(0), task.seconds)


def _answer(message: dict[str, Any]) -> Answer:
    return Answer(
        number=int(message["number"]),
        ending=Ending(int(message["ending"])),
        bound=float(message["bound"]),
        value=float(message["value"]),
        point=message["point"],
        seconds=float(message["seconds"]),
    )
