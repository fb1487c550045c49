"""The command `abcrown`: reads the command line, runs what it asks for, and ends with an exit code.

Exit codes: 0 a verdict was reached (sat, unsat, unknown or timeout), 1 internal error, 2 bad input, 3 a rank was lost.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from complete_verifier.config import LoadedConfig, check_supported, load_config, render_config, to_yaml
from complete_verifier.driver.boundary import OK, Boundary
from complete_verifier.driver.checks import check_asked, refuse_several, save_minimal_config
from complete_verifier.driver.instances import is_dataset, is_list
from complete_verifier.driver.interrupts import Interrupts
from complete_verifier.driver.keeping import refuse_checkpoints
from complete_verifier.driver.limits import timeout_seconds
from complete_verifier.driver.seat import Seat
from complete_verifier.driver.sweep_options import COMMAND, Sweep, read_sweep
from complete_verifier.reporting.display import Display, Mute, make_display

if TYPE_CHECKING:
    from complete_verifier.driver.launch import Layout
    from complete_verifier.driver.rank import Rank


def main(words: Sequence[str], started: float) -> int:
    """Run a command line and return the exit code. ``started``: the monotonic time that the deadline counts from."""
    boundary = Boundary(debug="--debug" in words)
    seat = Seat.of_environment()
    if seat is not None:
        return _as_rank(seat, started, "--debug" in words, lambda rank: _run(words, started, rank))
    with boundary:
        return _run(words, started)
    return boundary.code


def _as_rank(seat: Seat, started: float, debug: bool, run: Callable[[Rank], int]) -> int:
    """Run as one of several ranks: what goes wrong is told once, by one of them."""
    from complete_verifier.driver.rank import Rank

    rank = Rank(seat, started)
    boundary = Boundary(debug, tell=lambda message: None)
    with boundary:
        boundary.code = run(rank)
    return rank.end(boundary.code, boundary.message, boundary.error)


def _run(words: Sequence[str], started: float, rank: Rank | None = None) -> int:
    sweep = read_sweep(words[1:]) if words and words[0] == COMMAND else None
    loaded = load_config(words) if sweep is None else sweep.loaded
    if loaded.options.print_config:
        if rank is None or rank.speaks:
            print(render_config(loaded), end="")
        return OK
    warned = check_supported(loaded)
    check_asked(loaded)
    if loaded.options.plan:
        from complete_verifier.driver.plan_report import print_plan

        with Mute() if rank is not None and not rank.speaks else make_display(loaded.options.quiet) as display:
            return print_plan(loaded, display)
    layout = _layout(loaded)
    if rank is None:
        save_minimal_config(loaded)
    if layout is not None or rank is not None:
        refuse_several(loaded, sweep is not None, None if layout is None else layout.nnodes)
    if layout is None or sweep is not None or is_list(loaded.config) or is_dataset(loaded.config):
        return _work(loaded, sweep, warned, started, rank)
    from complete_verifier.driver.launch import launch

    def run(seat: Seat) -> int:
        debug = loaded.options.debug
        return _as_rank(seat, started, debug, lambda rank: _work(loaded, None, warned, started, rank))

    deadline = started + timeout_seconds(loaded.config, None)
    return launch(layout, run, deadline, loaded.options.max_restarts or 0).code


def _layout(loaded: LoadedConfig) -> Layout | None:
    """The ranks to be started, if there are any."""
    options = loaded.options
    if options == type(options)():
        return None
    from complete_verifier.driver.launch import Layout

    return Layout.of(loaded)


def _work(loaded: LoadedConfig, sweep: Sweep | None, warned: Sequence[str], started: float, rank: Rank | None) -> int:
    if rank is not None:
        if rank.speaks and not rank.seat.launched:
            save_minimal_config(loaded)
        rank.begin(loaded.config.parallel.timeout_s, timeout_seconds(loaded.config, None))
    interrupts = Interrupts()
    display = Mute() if rank is not None and not rank.speaks else make_display(loaded.options.quiet)
    logs = _Lines(display.line) if rank is None or rank.speaks else _Lines(_errors_of(rank.seat.rank), logging.ERROR)
    with interrupts.installed(), display, _logs_to(logs, loaded.options.debug):
        _introduce(loaded, warned, display)
        if sweep is not None or is_list(loaded.config) or is_dataset(loaded.config):
            refuse_checkpoints(loaded)
        if sweep is not None:
            from complete_verifier.driver.sweeps import run_sweep

            return run_sweep(sweep, display, interrupts)
        if loaded.config.general.prepare_only:
            from complete_verifier.driver.preparing import prepare_only

            return prepare_only(loaded, display)
        if is_dataset(loaded.config):
            from complete_verifier.driver.examples import run_examples

            return run_examples(loaded, display, interrupts, by_ranks=_layout(loaded) is not None)
        if is_list(loaded.config):
            from complete_verifier.driver.listed import run_list

            return run_list(loaded, display, interrupts)
        if loaded.config.general.save_output:
            display.line("warning: general.save_output: acts for lists; --stats_file has the facts of one instance")
        from complete_verifier.driver.single import run_single

        run_single(loaded, display, interrupts, started, rank=rank)
    return OK


def _introduce(loaded: LoadedConfig, warned: Sequence[str], display: Display) -> None:
    """What is run: the settings that differ from the defaults, and what was passed over."""
    display.line("Configurations:")
    for line in to_yaml(loaded.config, only_non_default=True).splitlines():
        display.line(f"  {line}")
    for line in warned:
        display.line(f"warning: {line}")


class _Lines(logging.Handler):
    """Log records as lines."""

    def __init__(self, say: Callable[[str], None], level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(f"{record.levelname.lower()}: {' '.join(record.getMessage().split())}")


def _errors_of(rank: int) -> Callable[[str], None]:
    """Ranks without a display speak on errors only."""

    def say(text: str) -> None:
        sys.stderr.write(f"rank {rank}: {text}\n")

    return say


@contextmanager
def _logs_to(handler: logging.Handler, debug: bool) -> Iterator[None]:
    """Within: our loggers speak through the display, and other libraries' warnings only with --debug."""
    level = logging.DEBUG if debug else logging.WARNING
    loggers = [logging.getLogger(name) for name in ("auto_LiRPA", "complete_verifier")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            yield
    finally:
        for logger, (old_level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old_level)
            logger.propagate = propagate
