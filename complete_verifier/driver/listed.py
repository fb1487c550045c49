"""A run of a list of instances: one after the other, each by itself; a row that fails does not end the list."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from complete_verifier.config import LoadedConfig
from complete_verifier.driver.boundary import BAD_INPUT, INTERNAL, OK, Boundary
from complete_verifier.driver.contexts import make_context
from complete_verifier.driver.instance import run_instance
from complete_verifier.driver.instances import Instance, listed_instances
from complete_verifier.driver.interrupts import Interrupts
from complete_verifier.driver.limits import timeout_seconds
from complete_verifier.outcome import Verdict
from complete_verifier.problem import Clock
from complete_verifier.reporting.display import Display
from complete_verifier.reporting.lines import result_lines
from complete_verifier.reporting.report import InstanceReport
from complete_verifier.reporting.results import (
    prepare_output,
    write_counterexample,
    write_list_results,
    write_list_statistics,
)
from complete_verifier.reporting.summary import summary_lines


def run_list(loaded: LoadedConfig, display: Display, interrupts: Interrupts) -> int:
    """Run the rows of the list; returns the exit code: the worst of the rows'.

    Raises:
        UserError: the list itself cannot be read or its results cannot be written.
    """
    config = loaded.config
    instances = listed_instances(config)
    results, statistics = Path(config.general.results_file), loaded.options.stats_file
    prepare_output(results, "general.results_file")
    if statistics is not None:
        prepare_output(Path(statistics), "--stats_file")
    display.line(f"Internal results will be saved to {results}.")
    _, note = make_context(loaded)  # a device or mode that is not available concerns all rows
    if note is not None:
        display.line(note)
    reports: list[InstanceReport] = []
    codes = {OK}
    for instance in instances:
        display.line(f"{'%' * 35} idx: {instance.index}, vnnlib ID: {instance.index} {'%' * 35}")
        report, code = _row(loaded, instance, display, interrupts)
        codes.add(code)
        reports.append(report)
        if config.general.save_adv_example:
            write_counterexample(Path(config.attack.cex_path), report)
        _write(results, statistics, reports)
        for line in result_lines(report, alone=False):
            display.result(line)
        if interrupts.terminated:
            display.line("terminated by SIGTERM: the remaining rows are left out")
            break
    for line in summary_lines(reports):
        display.result(line)
    return next(code for code in (INTERNAL, BAD_INPUT, OK) if code in codes)


def _write(results: Path, statistics: str | None, reports: Sequence[InstanceReport]) -> None:
    write_list_results(results, reports)
    if statistics is not None:
        write_list_statistics(Path(statistics), reports)


def _row(
    loaded: LoadedConfig, instance: Instance, display: Display, interrupts: Interrupts
) -> tuple[InstanceReport, int]:
    """One row with settings, clock and context of its own."""
    clock = Clock(time.monotonic(), timeout_seconds(loaded.config, instance.timeout_s))
    display.begin(f"{instance.network.name} / {instance.specification.name}", clock.started, clock.timeout_s)
    boundary = Boundary(loaded.options.debug)
    with boundary:
        context, _ = make_context(loaded)
        report = run_instance(loaded.config, instance, context, clock, display.event, interrupts)
        return report, OK
    failed = InstanceReport(
        index=instance.index,
        network=str(instance.network),
        specification=str(instance.specification),
        verdict=Verdict.UNKNOWN,
        status="unknown-error",
        stopped_by="error",
        wall_s=clock.elapsed(),
        timeout_s=clock.timeout_s,
        error=boundary.message,
    )
    return failed, boundary.code
