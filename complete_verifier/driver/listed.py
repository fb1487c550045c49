"""A run of the list that a YAML file names (``general.csv_name``), and which rows of an earlier run still hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import Config, LoadedConfig
from complete_verifier.driver.instances import Instance, listed_instances
from complete_verifier.driver.interrupts import Interrupts
from complete_verifier.driver.limits import timeout_seconds
from complete_verifier.driver.list_run import ListRun, Outputs
from complete_verifier.driver.outputs import refuse_losses, results_of
from complete_verifier.reporting.display import Display
from complete_verifier.reporting.results import prepare_output
from complete_verifier.reporting.rows import Row
from complete_verifier.reporting.table import Table, read_table
from complete_verifier.sweep.fingerprint import Fingerprints


def run_list(loaded: LoadedConfig, display: Display, interrupts: Interrupts) -> int:
    """Run the list that the settings name (``general.csv_name``), one row after the other; returns the exit code.

    The table goes to ``general.results_file``. Where that holds rows of the same list, settings and files, but not
    all that are asked for, an interrupted run is gone on with; in every other case it is started anew.

    Raises:
        UserError: the list itself cannot be read or its results cannot be written.
    """
    config = loaded.config
    instances, path = listed_instances(config), Path(config.general.results_file)
    refuse_losses(loaded, instances, results_of(loaded))
    done = rows_to_keep(path, instances, config)
    prepare_output(path, "general.results_file")
    display.line(f"Internal results will be saved to {path}.")
    if done:
        display.line(f"going on with an interrupted run: {len(done)} of {len(instances)} rows are there")
    where = Outputs(Path(config.attack.cex_path) if config.general.save_adv_example else None, None)
    return ListRun(loaded, instances, Table(path, done), where, display, interrupts).run(jobs=1)


def rows_to_keep(path: Path, instances: Sequence[Instance], config: Config) -> list[Row]:
    """The rows of an interrupted run: those asked for, if they hold and others are missing."""
    asked = {instance.index for instance in instances}
    fitting, _ = known_rows(_rows_left_behind(path), instances, config)
    done = [row for row in fitting if row.index in asked]
    return done if len(done) < len(asked) else []


def _rows_left_behind(path: Path) -> Sequence[Row]:
    try:
        return read_table(path) if path.is_file() else ()
    except ConfigError:
        return ()  # the results of another kind of run: replaced, as ever


def known_rows(rows: Sequence[Row], instances: Sequence[Instance], config: Config) -> tuple[list[Row], list[Row]]:
    """Rows that still hold (rows that are not asked for among them), and rows of other settings or files."""
    asked, fingerprints = {instance.index: instance for instance in instances}, Fingerprints(config)
    fitting: list[Row] = []
    stale: list[Row] = []
    for row in rows:
        instance = asked.get(row.index)
        holds = instance is None or row.fingerprint == fingerprints.of(
            instance.network, instance.specification, timeout_seconds(config, instance.timeout_s)
        )
        (fitting if holds else stale).append(row)
    return fitting, stale
