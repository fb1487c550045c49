"""What the process of one instance of a list does: the single-instance road, its events and its report sent back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from complete_verifier.config import LoadedConfig
from complete_verifier.driver.boundary import Boundary
from complete_verifier.driver.contexts import make_context
from complete_verifier.driver.instance import run_instance
from complete_verifier.driver.instances import Instance
from complete_verifier.driver.interrupts import Interrupts
from complete_verifier.driver.tasks import Failure, Probe, RunInstance, Work
from complete_verifier.events import Note
from complete_verifier.problem import Clock
from complete_verifier.sweep.messages import Send


def work(shared: object, task: object, send: Send) -> None:
    """Do a task for the sweep; ``shared`` are its settings. Whatever goes wrong is sent as `Failure`."""
    assert isinstance(shared, LoadedConfig) and isinstance(task, Probe | RunInstance)
    interrupts = Interrupts()
    with interrupts.installed(), _logs_sent(send, shared.options.debug):
        boundary = Boundary(shared.options.debug, tell=lambda message: None)
        with boundary:
            _do(shared, task, send, interrupts)
        if boundary.message is not None:
            send(Failure(boundary.message, boundary.code))


def _do(loaded: LoadedConfig, task: Work, send: Send, interrupts: Interrupts) -> None:
    context, note = make_context(loaded)
    match task:
        case Probe():
            if note is not None:
                send(Note(note))
        case RunInstance(index, network, specification, started, timeout_s):
            instance = Instance(index, network, specification, config_dir=loaded.config_dir)
            clock = Clock(started, timeout_s)
            send(run_instance(loaded.config, instance, context, clock, send, interrupts))


class _Forward(logging.Handler):
    """Log records as notes to the sweep."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send(Note(f"{record.levelname.lower()}: {' '.join(record.getMessage().split())}"))


@contextmanager
def _logs_sent(send: Send, debug: bool) -> Iterator[None]:
    handler = _Forward(send)
    loggers = [logging.getLogger(name) for name in ("auto_LiRPA", "complete_verifier")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if debug else logging.WARNING)
        logger.propagate = False
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True
