"""`ABCROWN`: the command line as a class, for scripts that start it from Python."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from abcrown.running import HostInterrupts, undisturbed
from abcrown.solver import Bounds, with_bounds
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.errors import ConfigError
from auto_LiRPA.parallel.context import DistributedContext
from complete_verifier.config import Config, LoadedConfig, check_supported, load_config
from complete_verifier.config.options import option_table
from complete_verifier.driver.checks import refuse_several
from complete_verifier.driver.instances import is_dataset, is_list, single_instance
from complete_verifier.driver.launch import Layout
from complete_verifier.driver.questions import FileReader, Question, Reader
from complete_verifier.driver.seat import Seat, speaks
from complete_verifier.driver.single import run_single
from complete_verifier.problem import Clock
from complete_verifier.reporting.display import Display, Mute, make_display
from complete_verifier.reporting.table import read_table

Summary = dict[str, list[int]]


class ABCROWN:
    """One command line. Under `torchrun` every rank runs the same one: the first rank alone prints and writes files.

    Args:
        args: its words, as after ``abcrown``: ``["--config", "x.yaml", "--timeout", "60"]``.
        kwargs: more flags by their names: ``batch_size=512`` is ``--batch_size=512``, a list gives several values,
            True ``--name``, False ``--no_name`` (or the option's value false, where there is no such flag).

    Raises:
        ConfigError: an unknown flag, or a value that does not fit.
    """

    def __init__(self, args: Sequence[str] | None = None, **kwargs: object) -> None:
        self._words = [*(args or ()), *(word for name, value in kwargs.items() for word in _words(name, value))]
        self._loaded = load_config(self._words)

    def main(self, interm_bounds: Bounds | None = None) -> Summary:
        """Run it: one instance, a list or a data set. Lines and files are the command's.

        Args:
            interm_bounds: for one instance: bounds that are known to hold, see `ABCrownSolver.solve`.

        Returns:
            status -> indices of the instances that ended so: ``{"safe-incomplete": [0, 2], "unknown": [1]}``.

        Raises:
            UserError: bad input. (An instance of a list that fails is ``unknown-error``; the others go on.)
        """
        started, loaded = time.monotonic(), self._loaded
        warned = check_supported(loaded)
        several = is_dataset(loaded.config) or is_list(loaded.config)
        layout = Layout.of(loaded)
        if not several and layout is not None:
            raise ConfigError(
                f"--nproc {loaded.options.nproc}: this process is one rank; run the command abcrown, or torchrun"
            )
        if Seat.of_environment() is not None:
            refuse_several(loaded, is_list(loaded.config), machines=None)
        elif layout is not None:
            refuse_several(loaded, is_list(loaded.config), layout.nnodes)
        interrupts = HostInterrupts()
        display_of = make_display(loaded.options.quiet) if speaks() else Mute()
        with undisturbed(), interrupts.installed(), display_of as display:
            for line in warned:
                display.line(f"warning: {line}")
            if several and interm_bounds is not None:
                raise ConfigError("interm_bounds: for one instance only; a list has several")
            if several:
                return _several(loaded, display, interrupts)
            read = None if interm_bounds is None else _informed(loaded, interm_bounds)
            report = run_single(loaded, display, interrupts, started, read)
            return {report.status: [report.index]}


def _several(loaded: LoadedConfig, display: Display, interrupts: HostInterrupts) -> Summary:
    if is_dataset(loaded.config):
        from complete_verifier.driver.examples import run_examples

        run_examples(loaded, display, interrupts, by_ranks=Layout.of(loaded) is not None)
        asked: set[int] | None = None
    else:
        from complete_verifier.driver.instances import listed_instances
        from complete_verifier.driver.listed import run_list

        asked = {instance.index for instance in listed_instances(loaded.config)}
        run_list(loaded, display, interrupts)
    summary: Summary = {}
    for row in read_table(Path(loaded.config.general.results_file)):
        if asked is None or row.index in asked:
            summary.setdefault(row.status, []).append(row.index)
    return summary


@dataclass(frozen=True, slots=True)
class _Informed:
    """A reader of files whose question comes with bounds that the caller knows."""

    files: FileReader
    bounds: Bounds

    def __call__(self, config: Config, context: DistributedContext, bounds: BoundSettings, clock: Clock) -> Question:
        return with_bounds(self.files(config, context, bounds, clock), self.bounds)


def _informed(loaded: LoadedConfig, bounds: Bounds) -> Reader:
    instance = single_instance(loaded.config, loaded.config_dir)
    return _Informed(FileReader(instance.network, instance.specification, instance.config_dir), bounds)


def _words(name: str, value: object) -> list[str]:
    """A keyword argument as words of a command line."""
    if isinstance(value, bool):
        return _switch(name, value)
    if isinstance(value, list | tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


def _switch(name: str, value: bool) -> list[str]:
    """The flag that switches on or off, or where there is none for that, the option by its path."""
    wanted, other = (f"--{name}", f"--no_{name}") if value else (f"--no_{name}", f"--{name}")
    sets: Mapping[str, tuple[str, bool]] = {
        flag: (option.path, to)
        for option in option_table().values()
        for flag, to in ((option.flag, option.sets), (option.off_flag, not option.sets))
        if flag is not None and option.sets is not None and to is not None
    }
    if wanted in sets or other not in sets:
        return [wanted]
    path, to = sets[other]
    return ["--set", f"{path}={str(not to).lower()}"]
