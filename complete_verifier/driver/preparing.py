"""`general.prepare_only`: network and property are read and checked, nothing is verified and no result is written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

from complete_verifier.config import LoadedConfig
from complete_verifier.driver.boundary import BAD_INPUT, OK, Boundary
from complete_verifier.driver.choices import bound_settings
from complete_verifier.driver.contexts import make_context
from complete_verifier.driver.instances import Instance, is_dataset, is_list, listed_instances, single_instance
from complete_verifier.driver.questions import FileReader, Reader
from complete_verifier.problem import Clock
from complete_verifier.reporting.display import Display


def prepare_only(loaded: LoadedConfig, display: Display) -> int:
    """Read everything that a run would read; returns the exit code: that of bad input if any of it is.

    Raises:
        UserError: the one instance, or the list itself, cannot be read.
    """
    instances = list(_readers(loaded))
    code = OK
    for instance, read in instances:
        boundary = Boundary(loaded.options.debug)
        with boundary:
            _read(loaded, instance, read, display)
        if boundary.message is not None:
            code = boundary.code if len(instances) == 1 else BAD_INPUT
    display.result(f"prepared {len(instances)} instance{'' if len(instances) == 1 else 's'}; nothing was verified")
    return code


def _readers(loaded: LoadedConfig) -> Iterator[tuple[Instance, Reader]]:
    config = loaded.config
    if is_dataset(config):
        from complete_verifier.driver.examples import Examples

        source = Examples.of(loaded)
        yield from ((instance, source.reader(instance.index)) for instance in source.instances())
        return
    found = listed_instances(config) if is_list(config) else (single_instance(config, loaded.config_dir),)
    for instance in found:
        yield instance, FileReader(instance.network, instance.specification, loaded.config_dir)


def _read(loaded: LoadedConfig, instance: Instance, read: Reader, display: Display) -> None:
    context, note = make_context(loaded)
    if note is not None:
        display.line(note)
    clock = Clock(time.monotonic(), math.inf)
    question = read(loaded.config, context, bound_settings(loaded.config), clock)
    prop, network = question.prop, Path(instance.network)
    display.line(
        f"{network} / {instance.specification}: {len(question.problem.graph.nodes)} nodes, {prop.n_inputs} inputs,"
        f" {prop.n_outputs} outputs, {len(question.problem.clauses.region)} clauses"
    )
