"""A run of one instance: its files are prepared, it is decided, and what was concluded is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from complete_verifier.config import LoadedConfig
from complete_verifier.driver.decision import Decision
from complete_verifier.driver.instances import single_instance
from complete_verifier.driver.interrupts import Interrupts
from complete_verifier.driver.limits import timeout_seconds
from complete_verifier.driver.outputs import refuse_losses, results_of
from complete_verifier.driver.seat import speaks
from complete_verifier.reporting.display import Display
from complete_verifier.reporting.lines import result_lines
from complete_verifier.reporting.report import InstanceReport
from complete_verifier.reporting.results import prepare_output, write_counterexample, write_result, write_statistics

if TYPE_CHECKING:
    from complete_verifier.driver.questions import Reader
    from complete_verifier.driver.rank import Rank


def run_single(
    loaded: LoadedConfig,
    display: Display,
    interrupts: Interrupts,
    started: float,
    read: Reader | None = None,
    rank: Rank | None = None,
) -> InstanceReport:
    """Decide the instance that the configuration names and write its files.

    Args:
        read: makes the question; None: the files that are named.
        rank: this process as one of several that are watched. With or without a watch the first rank alone writes.

    Raises:
        UserError: bad input; no results file is left then.
    """
    config, instance = loaded.config, single_instance(loaded.config, loaded.config_dir)
    timeout_s = timeout_seconds(config, None)
    results = Path(config.general.results_file)
    statistics = loaded.options.stats_file
    if speaks():
        refuse_losses(loaded, [instance], results_of(loaded))
        prepare_output(results, "general.results_file")
        if statistics is not None:
            prepare_output(Path(statistics), "--stats_file")
        if config.general.save_adv_example:
            prepare_output(Path(config.attack.cex_path), "attack.cex_path")
    display.begin(f"{instance.network.name} / {instance.specification.name}", started, timeout_s)

    def write(report: InstanceReport) -> None:
        if config.general.save_adv_example:
            write_counterexample(Path(config.attack.cex_path), report)
        write_result(results, report)
        if statistics is not None:
            write_statistics(Path(statistics), report)
        for line in result_lines(report, alone=True):
            display.result(line)

    decision = Decision(loaded, instance, interrupts, started, timeout_s, display.event, display.line, rank)
    return decision.made(write, read)
