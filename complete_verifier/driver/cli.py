"""The command `abcrown`: reads the command line, runs what it asks for, and ends with an exit code.

Exit codes: 0 a verdict was reached (sat, unsat, unknown or timeout), 1 internal error, 2 bad input, 3 a rank was lost.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from complete_verifier.config import LoadedConfig, check_supported, load_config, render_config, to_yaml
from complete_verifier.driver.boundary import OK, Boundary
from complete_verifier.driver.checks import check_asked, save_minimal_config
from complete_verifier.driver.instances import is_dataset, is_list
from complete_verifier.driver.interrupts import Interrupts
from complete_verifier.driver.keeping import refuse_checkpoints
from complete_verifier.driver.sweep_options import COMMAND, read_sweep
from complete_verifier.reporting.display import Display, make_display


def main(words: Sequence[str], started: float) -> int:
    """Run a command line and return the exit code. ``started``: the monotonic time that the deadline counts from."""
    boundary = Boundary(debug="--debug" in words)
    with boundary:
        return _run(words, started)
    return boundary.code


def _run(words: Sequence[str], started: float) -> int:
    sweep = read_sweep(words[1:]) if words and words[0] == COMMAND else None
    loaded = load_config(words) if sweep is None else sweep.loaded
    if loaded.options.print_config:
        print(render_config(loaded), end="")
        return OK
    warned = check_supported(loaded)
    check_asked(loaded)
    save_minimal_config(loaded)
    interrupts = Interrupts()
    with interrupts.installed(), make_display(loaded.options.quiet) as display, _logs_to(display, loaded.options.debug):
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

            return run_examples(loaded, display, interrupts)
        if is_list(loaded.config):
            from complete_verifier.driver.listed import run_list

            return run_list(loaded, display, interrupts)
        if loaded.config.general.save_output:
            display.line("warning: general.save_output: acts for lists; --stats_file has the facts of one instance")
        from complete_verifier.driver.single import run_single

        run_single(loaded, display, interrupts, started)
    return OK


def _introduce(loaded: LoadedConfig, warned: Sequence[str], display: Display) -> None:
    """What is run: the settings that differ from the defaults, and what was passed over."""
    display.line("Configurations:")
    for line in to_yaml(loaded.config, only_non_default=True).splitlines():
        display.line(f"  {line}")
    for line in warned:
        display.line(f"warning: {line}")


class _Lines(logging.Handler):
    """Log records as lines of the display."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.line(f"{record.levelname.lower()}: {' '.join(record.getMessage().split())}")


@contextmanager
def _logs_to(display: Display, debug: bool) -> Iterator[None]:
    """Within: our loggers speak through the display, and other libraries' warnings only with --debug."""
    handler, level = _Lines(display), logging.DEBUG if debug else logging.WARNING
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
