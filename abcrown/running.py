"""A run inside somebody else's process: the tool's own stages, with everything global put back as it was found."""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from complete_verifier.config import LoadedConfig, check_supported
from complete_verifier.driver.contexts import make_context
from complete_verifier.driver.instance import run_instance
from complete_verifier.driver.instances import Instance
from complete_verifier.driver.interrupts import Interrupts
from complete_verifier.driver.limits import timeout_seconds
from complete_verifier.driver.questions import Question, Reader
from complete_verifier.driver.run_state import OnBounds
from complete_verifier.driver.same_input import check_same_input
from complete_verifier.driver.seat import Seat, speaks
from complete_verifier.events import Event
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Clock
from complete_verifier.reporting.lines import lines_of
from complete_verifier.reporting.report import InstanceReport

logger = logging.getLogger("abcrown")

# What the question itself says when it comes from Python: such keys of a YAML file are passed over.
_REPLACED = (
    "model.name", "model.path", "model.onnx_path",
    "data.start", "data.end", "data.select_instance", "data.num_outputs", "data.mean", "data.std", "data.dataset",
    "specification.type", "specification.robustness_type", "specification.norm", "specification.epsilon",
    "specification.vnnlib_path", "general.csv_name",
)  # fmt: skip


def decide(
    loaded: LoadedConfig,
    instance: Instance,
    read: Reader | None = None,
    on_bounds: OnBounds | None = None,
) -> InstanceReport:
    """Decide one instance within ``bab.timeout`` seconds from now.

    Threads, random generators and flags of torch, numpy and Python are as before when it returns. What the run tells
    while it works goes to the logger ``abcrown``, level INFO.

    Under `torchrun` all ranks call it with the same settings and question, and all get the same answer; the first rank
    alone tells.

    Args:
        instance: its files; with ``read`` names only.

    Raises:
        UserError: settings or input that do not fit. One line says what and how to mend it.
        WorkerFailed: another rank was lost, or was given something else. Ranks are of no use to each other then.
    """
    tells = speaks()
    for line in check_supported(loaded):
        if tells:
            logger.warning("%s", line)
    clock = Clock(time.monotonic(), timeout_seconds(loaded.config, instance.timeout_s))
    interrupts = HostInterrupts()
    with undisturbed(), interrupts.installed():
        context, note = make_context(loaded)
        check_same_input(context, loaded, instance)
        if note is not None and tells:
            logger.info("%s", note)
        return run_instance(
            loaded.config, instance, context, clock, _tell, interrupts, read, on_bounds=on_bounds or _ignore_bounds
        )


def _ignore_bounds(question: Question, result: IncompleteResult) -> None:
    return None


def without_question(loaded: LoadedConfig) -> LoadedConfig:
    """The settings without those that say which network and property are meant, for a question from Python."""
    from complete_verifier.config.options import option_table

    given = [path for path in _REPLACED if loaded.is_set(path)]
    if not given:
        return loaded
    logger.info("passed over, since network and specification come from Python: %s", ", ".join(given))
    defaults = {path: option_table()[path].default for path in given}
    return loaded.with_values(defaults, "default")


def _tell(event: Event) -> None:
    for line in lines_of(event):
        logger.info("%s", line)


class HostInterrupts(Interrupts):
    """Signals belong to the program that called us: SIGTERM is left alone, and the alarm used only where it is free.

    One of several ranks has no alarm: it would leave the others in a collective, and its next call would meet them
    there. Stages end by agreement then, and a step that cannot look at the clock overruns the deadline.
    """

    def __init__(self) -> None:
        super().__init__()
        self._armed = False

    @contextmanager
    def installed(self) -> Iterator[Interrupts]:
        """Within, the alarm ends a run that misses its deadline, if nobody else uses it."""
        self._armed = _alarm_is_free() and Seat.of_environment() is None
        if not self._armed:
            yield self
            return
        before = signal.signal(signal.SIGALRM, self._on_alarm)
        try:
            yield self
        finally:
            signal.signal(signal.SIGALRM, before)

    @contextmanager
    def exposed(self, seconds_left: float) -> Iterator[None]:
        """As for the command, but without the alarm where it is not ours."""
        if not self._armed:
            yield
            return
        with super().exposed(seconds_left):
            yield


def _alarm_is_free() -> bool:
    if threading.current_thread() is not threading.main_thread():
        return False
    idle = signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    return idle and signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, signal.SIG_IGN)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Puts back what a run sets for the whole process: threads and random generators."""
    threads = torch.get_num_threads()
    python, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)
