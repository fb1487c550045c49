"""`abcrown sweep`: a folder with the table of a list, counterexamples, logs and report; it goes on where it stopped."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import Config, load_config, to_yaml
from complete_verifier.driver.instances import Instance, listed_instances
from complete_verifier.driver.interrupts import Interrupts
from complete_verifier.driver.list_run import ListRun, Outputs
from complete_verifier.driver.listed import known_rows
from complete_verifier.driver.outputs import refuse_losses
from complete_verifier.driver.sweep_options import Sweep
from complete_verifier.reporting.display import Display
from complete_verifier.reporting.results import write_atomically
from complete_verifier.reporting.rows import ERROR, Row
from complete_verifier.reporting.table import Table, read_table
from complete_verifier.sweep.fingerprint import changed_settings

TABLE, SETTINGS, REPORT = "results.csv", "settings.yaml", "report.html"
_MOST_NAMED = 3


def run_sweep(sweep: Sweep, display: Display, interrupts: Interrupts) -> int:
    """Run what the table of the folder lacks; returns the exit code: the worst of the rows'.

    Raises:
        UserError: the list, the folder or the file to compare with cannot be used.
    """
    config, path = sweep.loaded.config, sweep.folder / TABLE
    instances = listed_instances(config)
    names = (TABLE, SETTINGS, REPORT) if sweep.report else (TABLE, SETTINGS)
    refuse_losses(sweep.loaded, instances, [("--out", sweep.folder / name) for name in names])
    reference = None
    if sweep.compare is not None:
        from complete_verifier.report.reference import read_reference

        reference = read_reference(sweep.compare)  # before any long work: it may be unfit
    with _locked(sweep.folder):
        rows = _rows_that_hold(sweep, instances, display)
        display.line(f"Internal results will be saved to {path}.")
        asked = {instance.index for instance in instances}
        done = sum(row.index in asked for row in rows)
        if done:
            display.line(f"going on with an interrupted sweep: {done} of {len(asked)} rows are there")
        table = Table(path, rows)
        write_atomically(sweep.folder / SETTINGS, to_yaml(config, only_non_default=True).encode())
        run = ListRun(sweep.loaded, instances, table, Outputs(None, sweep.folder), display, interrupts)
        code = run.run(sweep.jobs)
        if sweep.report:
            from complete_verifier.report.page import write_report

            settings = to_yaml(config, only_non_default=True)
            write_report(sweep.folder / REPORT, run.rows(), reference, sweep.folder.resolve().name, settings)
            display.line(f"Report: {sweep.folder / REPORT}")
        return code


def _rows_that_hold(sweep: Sweep, instances: Sequence[Instance], display: Display) -> list[Row]:
    """Rows of an earlier run that need not be run again. Rows that no longer hold are kept in another file."""
    path, config = sweep.folder / TABLE, sweep.loaded.config
    fitting, stale = known_rows(read_table(path), instances, config)
    if stale:
        aside = sweep.folder / f"results-until-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.csv"
        Table(aside, stale)
        display.line(
            f"warning: {len(stale)} rows of {path} are of {_what_changed(sweep.folder, config)}:"
            f" moved to {aside.name}, these instances are run again"
        )
    if not sweep.retry_errors:
        return fitting
    asked = {instance.index for instance in instances}
    return [row for row in fitting if row.verdict != ERROR or row.index not in asked]


def _what_changed(folder: Path, config: Config) -> str:
    """What the rows that no longer hold were made with."""
    try:
        before = load_config(["--config", str(folder / SETTINGS)]).config
    except ConfigError:
        return "other settings, files or time limits"
    changes = changed_settings(before, config)
    if not changes:
        return "other networks, properties or time limits"
    more = f" and {len(changes) - _MOST_NAMED} more" if len(changes) > _MOST_NAMED else ""
    return f"other settings ({', '.join(changes[:_MOST_NAMED])}{more})"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Within, no other sweep writes to the folder. The lock ends with this process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written ({error.strerror}); name another folder") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--out {folder}: another sweep is writing there; wait for its end") from None
        for left_over in folder.glob(f".{TABLE}.*"):
            left_over.unlink()  # of a sweep that was killed while it wrote
        yield
    finally:
        os.close(descriptor)
