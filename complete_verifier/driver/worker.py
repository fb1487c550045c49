"""What the process of one instance of several does: the single-instance road, its events and its report sent back.

With several ranks it launches them, and rank 0 sends; what went wrong in a rank it sends itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# everything that a run needs is imported before the fork, once for all instances
from complete_verifier.config import LoadedConfig
from complete_verifier.driver import instance as _instance  # noqa: F401
from complete_verifier.driver import keeping as _keeping  # noqa: F401
from complete_verifier.driver import same_input as _same_input  # noqa: F401
from complete_verifier.driver.boundary import OK, Boundary
from complete_verifier.driver.contexts import check_placement, make_context
from complete_verifier.driver.decision import Decision
from complete_verifier.driver.instances import Instance
from complete_verifier.driver.interrupts import Interrupts
from complete_verifier.driver.launch import Layout, launch
from complete_verifier.driver.rank import Rank
from complete_verifier.driver.seat import Seat
from complete_verifier.driver.tasks import Failure, Probe, RunInstance, Shared
from complete_verifier.events import Note
from complete_verifier.sweep.messages import Send


def work(shared: object, task: object, send: Send) -> None:
    """Do a task for the sweep. Whatever goes wrong is sent as `Failure`."""
    assert isinstance(shared, Shared) and isinstance(task, Probe | RunInstance)
    boundary = Boundary(shared.loaded.options.debug, tell=lambda message: None)
    with boundary:
        layout = Layout.of(shared.loaded)
        match task:
            case Probe():
                _probe(shared.loaded, layout, send)
            case RunInstance() if layout is None:
                _decide(shared, task, send, None)
            case RunInstance():
                _launch(layout, shared, task, send)
    if boundary.message is not None:
        send(Failure(boundary.message, boundary.code))


def _probe(loaded: LoadedConfig, layout: Layout | None, send: Send) -> None:
    """Is there what the settings ask for? What ranks see only together, such as the plan of a mode, is left to them."""
    if layout is None:
        _, note = make_context(loaded)
    else:
        note = check_placement(loaded, layout.seat(0, 0, 0, 0))
    if note is not None:
        send(Note(note))


def _decide(shared: Shared, task: RunInstance, send: Send, rank: Rank | None) -> None:
    loaded = shared.loaded
    instance = Instance(task.index, task.network, task.specification, config_dir=loaded.config_dir)
    read = None if shared.examples is None else shared.examples.reader(task.index)
    tell = send if rank is None or rank.speaks else _say_nothing
    interrupts = Interrupts()
    with interrupts.installed(), _logs_sent(tell, loaded.options.debug):
        Decision(
            loaded,
            instance,
            interrupts,
            task.started,
            task.timeout_s,
            tell,
            lambda text: tell(Note(text)) if rank is not None else None,
            rank,
        ).made(tell, read, keeps=False)


def _launch(layout: Layout, shared: Shared, task: RunInstance, send: Send) -> None:
    loaded = shared.loaded

    def run(seat: Seat) -> int:
        rank = Rank(seat, task.started, quiet=True)
        boundary = Boundary(loaded.options.debug, tell=lambda message: None)
        with boundary:
            rank.begin(loaded.config.parallel.timeout_s, task.timeout_s)
            _decide(shared, task, send, rank)
        return rank.end(boundary.code, boundary.message, boundary.error)

    ended = launch(layout, run, task.started + task.timeout_s, loaded.options.max_restarts or 0, quiet=True)
    if ended.code != OK:
        send(Failure(ended.line or f"internal error: the ranks ended with code {ended.code}", ended.code))


def _say_nothing(message: object) -> None:
    """Rank 0 speaks for all."""


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
