"""Examples of a data set over several ranks: each is decided by ranks of its own, as an instance of a list is.

Ranks that a deadline, a signal or the death of another one has cut short may be anywhere, and nothing can be asked of
them together any more. Ranks that are new for each example make that the affair of this example alone; in return each
reads the network anew. The data set is loaded once, here, so a loader that draws random numbers gives all ranks the
same, and what it starts (threads, CUDA) is in no process that is forked from.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from complete_verifier.config import LoadedConfig
from complete_verifier.driver.boundary import INTERNAL, INTERRUPTED, OK
from complete_verifier.driver.endings import State, signals, without_verdict
from complete_verifier.driver.examples import Decide, Examples, failed
from complete_verifier.driver.instances import Instance
from complete_verifier.driver.interrupts import Interrupts
from complete_verifier.driver.limits import timeout_seconds
from complete_verifier.driver.list_run import PRELOAD, WORK, check_device
from complete_verifier.driver.tasks import Failure, RunInstance, Shared
from complete_verifier.events import SearchProgressed
from complete_verifier.outcome import Verdict
from complete_verifier.reporting.display import Display
from complete_verifier.reporting.report import InstanceReport
from complete_verifier.sweep.processes import Processes
from complete_verifier.sweep.queue import LocalQueue
from complete_verifier.sweep.scheduler import Finish, Job, Scheduler

# What the export of a torch module imports: seconds that every rank would spend on every example.
_PRELOAD_FOR_MODULES = (*PRELOAD, "onnxscript", "torch._dynamo")


@contextmanager
def decided_by_ranks(
    loaded: LoadedConfig, source: Examples, display: Display, interrupts: Interrupts
) -> Iterator[Decide]:
    """Yields what decides an example. On the way out nothing is left of what it started.

    Raises:
        UserError: the device is not there, which concerns all examples.
    """
    preload = PRELOAD if loaded.config.model.name is None else _PRELOAD_FOR_MODULES
    with signals(interrupts) as signalled, Processes(WORK, Shared(loaded, source), preload) as processes:
        check_device(processes, display, lambda: signalled() is not None)
        yield lambda instance: _Example(loaded, instance, display).decided(processes, signalled)


class _Example:
    """One example: owner of the one job that decides it."""

    def __init__(self, loaded: LoadedConfig, instance: Instance, display: Display) -> None:
        self._debug, self._display = loaded.options.debug, display
        self._state = State(instance, time.monotonic(), timeout_seconds(loaded.config, None))
        self._finish: Finish | None = None

    def decided(self, processes: Processes, signalled: Callable[[], int | None]) -> tuple[InstanceReport, int]:
        """Its report, and the exit code for it."""
        queue = LocalQueue([self._state.instance.index])
        Scheduler(queue, self, processes, 1).run(lambda: signalled() is not None)
        if self._finish is None:
            return self._cut_short(signalled())
        state = self._state  # that of the last try
        if state.report is not None:
            return state.report, OK
        report, code = without_verdict(state, self._finish), OK if self._finish.overran else INTERNAL
        if state.failure is not None and not self._finish.overran:
            report = failed(state.instance, state.timeout_s, self._finish.seconds, state.failure.message)
            code = state.failure.code
        if report.error is not None:
            sys.stderr.write(f"{self._finish.output if self._debug else ''}{report.error}\n")
            sys.stderr.flush()
        return report, code

    def _cut_short(self, number: int | None) -> tuple[InstanceReport, int]:
        """A signal came first: the ranks are ended together with the process that they were started from."""
        state, why = self._state, "interrupted" if number == signal.SIGINT else "terminated by SIGTERM"
        if number == signal.SIGINT:
            sys.stderr.write(f"{why}\n")
        report = InstanceReport(
            index=state.instance.index,
            network=str(state.instance.network),
            specification=str(state.instance.specification),
            verdict=Verdict.UNKNOWN,
            status="unknown",
            stopped_by=why,
            wall_s=time.monotonic() - state.started,
            timeout_s=state.timeout_s,
        )
        return report, INTERRUPTED if number == signal.SIGINT else OK

    # -- the scheduler's owner ------------------------------------------------------------------------------------
    def job(self, index: int) -> Job:
        """Start the clock."""
        self._state = state = State(self._state.instance, time.monotonic(), self._state.timeout_s)
        instance = state.instance
        self._display.begin(f"{instance.network.name} / {instance.specification.name}", state.started, state.timeout_s)
        task = RunInstance(index, instance.network, instance.specification, state.started, state.timeout_s)
        return Job(task, state.timeout_s)

    def message(self, index: int, message: object) -> None:
        """Show progress, keep the answer."""
        match message:
            case InstanceReport():
                self._state.report = message
            case Failure():
                self._state.failure = message
            case event:
                if isinstance(event, SearchProgressed):
                    self._state.progress = event
                self._display.event(event)  # type: ignore[arg-type]

    def finished(self, index: int, finish: Finish) -> None:
        """Keep how it ended."""
        self._finish = finish
