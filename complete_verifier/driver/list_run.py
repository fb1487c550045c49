"""The engine of lists: each instance in a process of its own, a row of the table for each as it ends.

Both ways to ask for a list run here: `general.csv_name` of a YAML file, and `abcrown sweep`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import LoadedConfig
from complete_verifier.driver.boundary import BAD_INPUT, INTERNAL, OK
from complete_verifier.driver.endings import State, exit_code, signals, without_verdict
from complete_verifier.driver.instances import Instance
from complete_verifier.driver.interrupts import Interrupts
from complete_verifier.driver.launch import Layout
from complete_verifier.driver.limits import timeout_seconds
from complete_verifier.driver.tasks import Failure, Probe, RunInstance, Shared
from complete_verifier.events import Note, SearchProgressed
from complete_verifier.reporting.display import Display
from complete_verifier.reporting.lines import result_lines
from complete_verifier.reporting.report import InstanceReport
from complete_verifier.reporting.results import (
    prepare_output,
    write_counterexample,
    write_list_pickle,
    write_list_statistics,
)
from complete_verifier.reporting.rows import Row, row_of
from complete_verifier.reporting.summary import summary_lines
from complete_verifier.reporting.table import Table
from complete_verifier.sweep.fingerprint import Fingerprints
from complete_verifier.sweep.processes import Processes
from complete_verifier.sweep.queue import LocalQueue
from complete_verifier.sweep.scheduler import Finish, Job, Scheduler

WORK = "complete_verifier.driver.worker:work"
# What most instances import. Not onnxruntime: it starts a thread on import, which would not survive a fork.
PRELOAD, PRELOAD_FOR_MANY = ("onnx",), ("onnx", "scipy.optimize")
_FEW = 3
_SIGNALLED = 128  # exit codes of what a signal ended, as shells have them


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where counterexamples go (the last one's file), or one file each with its log if it failed (a folder)."""

    counterexample: Path | None
    folder: Path | None


class ListRun:
    """One run over a list. Owner of the scheduler's jobs: a row, files and lines for each."""

    def __init__(
        self,
        loaded: LoadedConfig,
        instances: Sequence[Instance],
        table: Table,
        outputs: Outputs,
        display: Display,
        interrupts: Interrupts,
    ) -> None:
        self._loaded, self._table, self._outputs = loaded, table, outputs
        self._instances = {instance.index: instance for instance in instances}
        self._display, self._interrupts = display, interrupts
        self._fingerprints = Fingerprints(loaded.config)
        self._root = Path(loaded.config.general.root_path)
        self._states: dict[int, State] = {}
        self._reports: list[InstanceReport] = []
        self._alone = True

    def run(self, jobs: int) -> int:
        """Run what the table lacks, ``jobs`` instances at a time; returns the exit code: the worst of the rows'.

        Raises:
            UserError: the device or mode is not there, or the results cannot be written.
        """
        statistics = self._loaded.options.stats_file
        if statistics is not None:
            prepare_output(Path(statistics), "--stats_file")
        if self._loaded.config.general.save_output:
            prepare_output(Path(self._loaded.config.general.output_file), "general.output_file")
        known = {row.index for row in self._table.rows}
        missing = [index for index in self._instances if index not in known]
        signalled = self._work(missing, jobs) if missing else None
        if signalled is None:
            self._table.sort()
        rows = self.rows()
        self._write(rows)
        for line in summary_lines(rows):
            self._display.result(line)
        if signalled is not None:
            name, left = signal.Signals(signalled).name, len(self._instances) - len(rows)
            self._display.line(f"ended by {name}: {left} of {len(self._instances)} rows are missing; run it again")
            return _SIGNALLED + signalled
        codes = {exit_code(row) for row in rows}
        return next((code for code in (INTERNAL, BAD_INPUT) if code in codes), OK)

    def rows(self) -> list[Row]:
        """The rows that were asked for and are there."""
        return [row for row in self._table.rows if row.index in self._instances]

    def _work(self, indices: Sequence[int], jobs: int) -> int | None:
        """The number of the signal that ended it, if one did."""
        self._alone = jobs == 1
        slots = min(jobs, len(indices))
        shared, preload = Shared(_shared(self._loaded, jobs)), PRELOAD_FOR_MANY if len(indices) > _FEW else PRELOAD
        with signals(self._interrupts) as signalled, Processes(WORK, shared, preload) as processes:
            check_device(processes, self._display, lambda: signalled() is not None)
            Scheduler(LocalQueue(indices), self, processes, slots).run(lambda: signalled() is not None)
            return signalled()

    # -- the scheduler's owner ------------------------------------------------------------------------------------
    def job(self, index: int) -> Job:
        """Start the clock of an instance."""
        instance, started = self._instances[index], time.monotonic()
        timeout_s = timeout_seconds(self._loaded.config, instance.timeout_s)
        self._states[index] = State(instance, started, timeout_s)
        if self._alone:
            self._display.line(_header(index))
            self._display.begin(_name(instance), started, timeout_s)
        self._show_progress()
        return Job(RunInstance(index, instance.network, instance.specification, started, timeout_s), timeout_s)

    def message(self, index: int, message: object) -> None:
        """Progress is shown where one instance runs at a time."""
        state = self._states[index]
        match message:
            case InstanceReport():
                state.report = message
            case Failure():
                state.failure = message
            case event:
                if isinstance(event, SearchProgressed):
                    state.progress = event
                if self._alone:
                    self._display.event(event)  # type: ignore[arg-type]

    def finished(self, index: int, finish: Finish) -> None:
        """Write what is known of an instance: its files first, so that whoever sees the row finds them."""
        state = self._states.pop(index)
        report = state.report or without_verdict(state, finish)
        instance = state.instance
        onnx, vnnlib = (_listed(path, self._root) for path in (instance.network, instance.specification))
        fingerprint = self._fingerprints.of(instance.network, instance.specification, state.timeout_s)
        row = row_of(report, onnx=onnx, vnnlib=vnnlib, fingerprint=fingerprint)
        if finish.ended is not None and row.peak_mib is None:
            row = replace(row, peak_mib=round(finish.ended.peak_mib, 1))
        self._write_files(report, finish)
        self._table.append(row)
        self._reports.append(report)
        self._tell(row, report, finish)

    def _tell(self, row: Row, report: InstanceReport, finish: Finish) -> None:
        if not self._alone:
            self._display.line(_header(row.index))
        if report.error is not None:
            log = finish.output if self._loaded.options.debug else ""
            sys.stderr.write(f"{log}{report.error}\n")
            sys.stderr.flush()
        for line in result_lines(replace(report, status=row.status), alone=False):
            self._display.result(line)
        self._show_progress()

    def _show_progress(self) -> None:
        names = ", ".join(_name(state.instance) for state in self._states.values())
        done = sum(row.index in self._instances for row in self._table.rows)
        self._display.overall(f"{done} of {len(self._instances)} done", "" if self._alone else names)

    def _write_files(self, report: InstanceReport, finish: Finish) -> None:
        folder, single = self._outputs.folder, self._outputs.counterexample
        if single is not None:
            write_counterexample(single, report)
        if folder is None:
            return
        name = f"{report.index:04d}.txt"
        if report.counterexample is not None:
            (folder / "counterexamples").mkdir(exist_ok=True)
            write_counterexample(folder / "counterexamples" / name, report)
        if report.error is not None and finish.output.strip():
            (folder / "logs").mkdir(exist_ok=True)
            (folder / "logs" / name).write_text(finish.output, encoding="utf-8")

    def _write(self, rows: Sequence[Row]) -> None:
        general, statistics = self._loaded.config.general, self._loaded.options.stats_file
        if general.save_output:
            write_list_pickle(Path(general.output_file), rows)
        if statistics is not None:
            place = {index: number for number, index in enumerate(self._instances)}
            write_list_statistics(Path(statistics), sorted(self._reports, key=lambda report: place[report.index]))
            if len(self._reports) < len(rows):
                self._display.line(f"{statistics} holds the {len(self._reports)} instances of this run")


class _Probe:
    """Owner of the one job that looks whether the device is there."""

    def __init__(self) -> None:
        self.failure: Failure | None = None
        self.notes: list[str] = []

    def job(self, index: int) -> Job:
        return Job(Probe(), 600.0)

    def message(self, index: int, message: object) -> None:
        if isinstance(message, Failure):
            self.failure = message
        elif isinstance(message, Note):
            self.notes.append(message.text)

    def finished(self, index: int, finish: Finish) -> None:
        return None


def check_device(processes: Processes, display: Display, stopped: Callable[[], bool]) -> None:
    """Look, in a process like those of instances, whether the device is there, and say which one where it was chosen.

    Raises:
        ConfigError: device or mode are not there, which concerns all instances.
    """
    probe = _Probe()
    Scheduler(LocalQueue([0]), probe, processes, 1).run(stopped)
    if probe.failure is not None:
        raise ConfigError(probe.failure.message.removeprefix("error: "))
    for note in probe.notes:
        display.line(note)


def _shared(loaded: LoadedConfig, jobs: int) -> LoadedConfig:
    """The settings that all processes share. Threads that nobody asked for are shared out like the cores."""
    layout = Layout.of(loaded)
    ranks = 1 if layout is None else layout.nproc
    if jobs == 1 or loaded.config.parallel.threads != "auto":
        return loaded
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return loaded.with_values({"parallel.threads": max(1, cores // (jobs * ranks))}, f"--jobs {jobs}")


def _header(index: int) -> str:
    return f"{'%' * 35} idx: {index}, vnnlib ID: {index} {'%' * 35}"


def _name(instance: Instance) -> str:
    return f"{instance.network.name} / {instance.specification.name}"


def _listed(path: Path, root: Path) -> str:
    """A path as the list has it."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
