"""A run of one instance: its files are prepared, it is decided, and what was concluded is written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from complete_verifier.config import LoadedConfig
from complete_verifier.driver.instances import Instance, single_instance
from complete_verifier.driver.interrupts import DeadlinePassed, Interrupts, Terminated
from complete_verifier.driver.limits import timeout_seconds
from complete_verifier.driver.outputs import refuse_losses, results_of
from complete_verifier.driver.start_up import paused_collection
from complete_verifier.outcome import Verdict
from complete_verifier.reporting.display import Display
from complete_verifier.reporting.lines import result_lines
from complete_verifier.reporting.report import InstanceReport
from complete_verifier.reporting.results import prepare_output, write_counterexample, write_result, write_statistics

if TYPE_CHECKING:
    from complete_verifier.driver.questions import Reader


def run_single(
    loaded: LoadedConfig, display: Display, interrupts: Interrupts, started: float, read: Reader | None = None
) -> InstanceReport:
    """Decide the instance that the configuration names and write its files.

    Args:
        read: makes the question; None: the files that are named.

    Raises:
        UserError: bad input; no results file is left then.
    """
    config, instance = loaded.config, single_instance(loaded.config, loaded.config_dir)
    timeout_s = timeout_seconds(config, None)
    results = Path(config.general.results_file)
    statistics = loaded.options.stats_file
    refuse_losses(loaded, [instance], results_of(loaded))
    prepare_output(results, "general.results_file")
    if statistics is not None:
        prepare_output(Path(statistics), "--stats_file")
    if config.general.save_adv_example:
        prepare_output(Path(config.attack.cex_path), "attack.cex_path")
    display.begin(f"{instance.network.name} / {instance.specification.name}", started, timeout_s)
    report = _decided(loaded, instance, display, interrupts, started, timeout_s, read)
    if config.general.save_adv_example:
        write_counterexample(Path(config.attack.cex_path), report)
    write_result(results, report)
    if statistics is not None:
        write_statistics(Path(statistics), report)
    for line in result_lines(report, alone=True):
        display.result(line)
    return report


def _decided(
    loaded: LoadedConfig,
    instance: Instance,
    display: Display,
    interrupts: Interrupts,
    started: float,
    timeout_s: float,
    read: Reader | None,
) -> InstanceReport:
    """The report, also where the run is cut short before its first stage, while libraries are imported."""
    try:
        with interrupts.exposed(started + timeout_s - time.monotonic()):
            with paused_collection():
                from complete_verifier.driver.contexts import make_context
                from complete_verifier.driver.instance import run_instance
                from complete_verifier.driver.keeping import plan_keeping
                from complete_verifier.problem import Clock

            context, note = make_context(loaded)
        if note is not None:
            display.line(note)
        keeping, clock = plan_keeping(loaded), Clock(started, timeout_s)
        if keeping is not None:
            display.line(keeping.line())
        return run_instance(
            loaded.config, instance, context, clock, display.event, interrupts, read, keeping=keeping
        )
    except DeadlinePassed:
        verdict, why = Verdict.TIMEOUT, f"time limit {timeout_s:g} s"
    except Terminated:
        verdict, why = Verdict.UNKNOWN, "terminated by SIGTERM"
    return InstanceReport(
        index=instance.index,
        network=str(instance.network),
        specification=str(instance.specification),
        verdict=verdict,
        status="unknown",
        stopped_by=why,
        wall_s=time.monotonic() - started,
        timeout_s=timeout_s,
    )
