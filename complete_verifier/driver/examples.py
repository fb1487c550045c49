"""A run over examples of a data set, one after the other: by this process, which keeps the network, or by ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.errors import ConfigError, SpecError
from auto_LiRPA.parallel.context import DistributedContext
from complete_verifier.compat.config_view import tree_of
from complete_verifier.compat.hooks import Hooks, hooks_of
from complete_verifier.config import Config, LoadedConfig
from complete_verifier.datasets import Dataset, Scaling, chosen_examples, dataset_from_loader, load_named, load_table
from complete_verifier.datasets.dataset import Floats
from complete_verifier.datasets.named import Request
from complete_verifier.driver.boundary import BAD_INPUT, INTERNAL, INTERRUPTED, OK, RANK_LOST, Boundary
from complete_verifier.driver.contexts import make_context
from complete_verifier.driver.instance import run_instance
from complete_verifier.driver.instances import Instance, network_name
from complete_verifier.driver.interrupts import Interrupts
from complete_verifier.driver.limits import timeout_seconds
from complete_verifier.driver.networks import Network, element_type, read_network
from complete_verifier.driver.outputs import refuse_losses, results_of
from complete_verifier.driver.questions import Question, adjusted, ask
from complete_verifier.driver.same_input import check_same_question
from complete_verifier.outcome import Verdict
from complete_verifier.problem import Clock
from complete_verifier.reporting.display import Display
from complete_verifier.reporting.lines import result_lines
from complete_verifier.reporting.report import InstanceReport
from complete_verifier.reporting.results import (
    prepare_output,
    write_counterexample,
    write_list_pickle,
    write_list_statistics,
)
from complete_verifier.reporting.rows import row_of
from complete_verifier.reporting.summary import summary_lines
from complete_verifier.reporting.table import Table

Decide = Callable[[Instance], tuple[InstanceReport, int]]  # the report of an example, and the exit code for it
_WORST_FIRST = (INTERRUPTED, INTERNAL, RANK_LOST, BAD_INPUT, OK)


def run_examples(loaded: LoadedConfig, display: Display, interrupts: Interrupts, by_ranks: bool = False) -> int:
    """Run the examples that are asked for; returns the exit code: the worst of the examples'.

    Args:
        by_ranks: each example by all ranks that the command line asks for; else by this process.

    Raises:
        UserError: network or data set cannot be had, or results cannot be written.
    """
    config, results = loaded.config, Path(loaded.config.general.results_file)
    source = Examples.of(loaded)
    instances = source.instances()
    refuse_losses(loaded, (), results_of(loaded))
    prepare_output(results, "general.results_file")
    statistics = loaded.options.stats_file
    if statistics is not None:
        prepare_output(Path(statistics), "--stats_file")
    display.line(f"Internal results will be saved to {results}.")
    with _decider(loaded, source, display, interrupts, by_ranks) as decide:
        run = _Run(loaded, display, interrupts, Table(results))
        run.over(instances, decide)
    table, reports, codes = run.table, run.reports, run.codes
    if statistics is not None:
        write_list_statistics(Path(statistics), reports)
    if config.general.save_output:
        write_list_pickle(Path(config.general.output_file), table.rows)
    for line in summary_lines(table.rows):
        display.result(line)
    return next(code for code in _WORST_FIRST if code in codes)


@dataclass(frozen=True, slots=True)
class _Run:
    """What examples have come to so far."""

    loaded: LoadedConfig
    display: Display
    interrupts: Interrupts
    table: Table
    reports: list[InstanceReport] = field(default_factory=list)
    codes: set[int] = field(default_factory=lambda: {OK})

    def over(self, instances: Sequence[Instance], decide: Decide) -> None:
        """Decide one after the other and write what is known of each, until the last or a signal."""
        config, display = self.loaded.config, self.display
        for instance in instances:
            display.line(f"{'%' * 35} idx: {instance.index}, vnnlib ID: {instance.index} {'%' * 35}")
            report, code = decide(instance)
            self.codes.add(code)
            if code == INTERRUPTED:
                break
            self.reports.append(report)
            if config.general.save_adv_example:
                write_counterexample(Path(config.attack.cex_path), report)
            self.table.append(row_of(report))
            for line in result_lines(report, alone=False):
                display.result(line)
            if self.interrupts.terminated:
                display.line("terminated by SIGTERM: the remaining examples are left out")
                break


@contextmanager
def _decider(
    loaded: LoadedConfig, source: Examples, display: Display, interrupts: Interrupts, by_ranks: bool
) -> Iterator[Decide]:
    """Yields what decides an example."""
    if by_ranks:
        from complete_verifier.driver.example_ranks import decided_by_ranks

        with decided_by_ranks(loaded, source, display, interrupts) as decide:
            yield decide
        return
    _, note = make_context(loaded)  # a device or mode that is not available concerns all examples
    if note is not None:
        display.line(note)
    yield lambda instance: _decided(loaded, source, instance, display, interrupts)


def _decided(
    loaded: LoadedConfig, source: Examples, instance: Instance, display: Display, interrupts: Interrupts
) -> tuple[InstanceReport, int]:
    """One example with a clock and a context of its own; what fails does not end the run."""
    clock = Clock(time.monotonic(), timeout_seconds(loaded.config, None))
    display.begin(f"{instance.network.name} / {instance.specification.name}", clock.started, clock.timeout_s)
    boundary = Boundary(loaded.options.debug)
    with boundary:
        context, _ = make_context(loaded)
        read = source.reader(instance.index)
        return run_instance(loaded.config, instance, context, clock, display.event, interrupts, read), OK
    return failed(instance, clock.timeout_s, clock.elapsed(), boundary.message), boundary.code


def failed(instance: Instance, timeout_s: float, seconds: float, message: str | None) -> InstanceReport:
    """The report of an example that has none of its own."""
    return InstanceReport(
        index=instance.index,
        network=str(instance.network),
        specification=str(instance.specification),
        verdict=Verdict.UNKNOWN,
        status="unknown-error",
        stopped_by="error",
        wall_s=seconds,
        timeout_s=timeout_s,
        error=message,
    )


@dataclass(slots=True)
class Examples:
    """The data set, the network it is asked about, and which examples are run. The network is read once."""

    config: Config
    hooks: Hooks
    config_dir: Path | None
    data: Dataset
    _network: Network | None = None
    _made_for: tuple[object, ...] = field(default=())

    @classmethod
    def of(cls, loaded: LoadedConfig) -> Examples:
        """Load the data set.

        Raises:
            ConfigError: no network is named, or the data cannot be had. SpecError: they do not fit together.
        """
        config = loaded.config
        if network_name(config) is None:
            raise ConfigError("model.name and model.onnx_path are missing: data.dataset alone names no network")
        if config.specification.robustness_type == "clean-acc":
            raise ConfigError(
                "specification.robustness_type = clean-acc: asks nothing about a region; choose verified-acc"
            )
        hooks = hooks_of(config, loaded.config_dir)
        data = load_dataset(loaded, hooks)
        return cls(config, hooks, loaded.config_dir, data)

    def instances(self) -> tuple[Instance, ...]:
        """Those to run, in order."""
        data, network = self.config.data, network_name(self.config)
        assert network is not None
        indices = chosen_examples(
            len(self.data),
            start=data.start,
            end=data.end,
            select=data.select_instance,
            index_file=None if data.data_idx_file is None else Path(data.data_idx_file),
            source=self.data.source,
        )
        return tuple(Instance(i, network, Path(self.data.name(i)), config_dir=self.config_dir) for i in indices)

    def reader(self, index: int) -> ExampleReader:
        """What makes the question of one example."""
        return ExampleReader(self, index)

    def network(self, config: Config, context: DistributedContext) -> Network:
        """The network in the precision and on the device that are asked for."""
        wanted = (element_type(config), context.device)
        if self._network is None or self._made_for != wanted:
            path = config.model.onnx_path
            self._network = read_network(
                config, self.hooks, context, None if path is None else Path(path), self.data.input_shape
            )
            self._made_for = wanted
        return self._network


@dataclass(frozen=True, slots=True)
class ExampleReader:
    """The reader of one example."""

    source: Examples
    index: int

    def __call__(self, config: Config, context: DistributedContext, bounds: BoundSettings, clock: Clock) -> Question:
        """The question whether the example is robust. Raises SpecError where network and data do not fit."""
        data, found = self.source.data, self.source.network(config, context)
        outputs, inputs = found.graph.nodes[found.graph.output].size, found.graph.nodes[0].size
        if config.data.num_outputs != outputs:
            raise SpecError(
                f"data.num_outputs = {config.data.num_outputs}, but the network has {outputs} outputs; correct it"
            )
        x = data.x[self.index]
        if x.size != inputs:
            raise SpecError(f"{data.name(self.index)}: {x.size} numbers, but the network takes {inputs} inputs")
        prop = data.property(
            self.index,
            config.specification.robustness_type,
            n_outputs=outputs,
            threshold=config.bab.decision_thresh,
            boxes=config.specification.type != "lp",
        )
        if found.module is not None:
            check_same_question(context, prop, found.module)
        return ask(found, adjusted(prop, config), context, bounds, clock, example=_point(x, found.dtype))


def _point(x: Floats, dtype: torch.dtype) -> Floats:
    kind: Any = np.float64 if dtype == torch.float64 else np.float32
    flat: Floats = np.ascontiguousarray(x.reshape(-1).astype(kind))
    return flat


def load_dataset(loaded: LoadedConfig, hooks: Hooks) -> Dataset:
    """The data set that the configuration names, from the user's files or loader."""
    config = loaded.config
    name, spec = config.data.dataset, config.specification
    scaling = Scaling(config.data.mean, config.data.std)
    if name is not None and name.lstrip().startswith("Customized"):
        tree = tree_of(config)
        result = hooks.call("data.dataset", name, tree, tree["specification"])
        radius = None if spec.epsilon is None else np.asarray(spec.epsilon) / np.asarray(config.data.std)
        if radius is not None:
            radius = radius.reshape(()) if radius.size == 1 else radius.reshape(1, -1, 1, 1)
        return dataset_from_loader(result, norm=spec.norm, radius=radius, source=name)
    given = loaded.is_set("data.mean") or loaded.is_set("data.std")
    request = Request(
        name=name or "CIFAR",
        folders=_folders(loaded),
        scaling=scaling if given else None,
        epsilon=spec.epsilon if config.data.pkl_path is None else spec.epsilon or 0.0,
        norm=spec.norm,
        model=config.model.name,
    )
    data = load_named(request)
    return data if config.data.pkl_path is None else load_table(Path(config.data.pkl_path), data)


def _folders(loaded: LoadedConfig) -> tuple[Path, ...]:
    """Where a folder `datasets` may lie: below the root path, beside the configuration, here."""
    root = loaded.config.general.root_path
    folders = [Path(root)] if root else []
    if loaded.config_dir is not None:
        folders.append(loaded.config_dir)
    return (*folders, Path())
