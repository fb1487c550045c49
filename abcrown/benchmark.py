"""`VNNCompBenchmark`: the instances of a benchmark folder, one by one or all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from abcrown.configuration import ConfigBuilder
from abcrown.running import decide
from abcrown.solver import SolveResult, result_of
from auto_LiRPA.errors import ConfigError
from complete_verifier.config import LoadedConfig
from complete_verifier.driver.instances import Instance, listed_instances

ROOT_VARIABLE = "ABCROWN_VNNCOMP_ROOT"
_LIST = "instances.csv"


class VNNCompBenchmark:
    """The instances that a configuration lists (``general.csv_name``, rows ``onnx,vnnlib,timeout``).

    Args:
        config_path: a YAML file, such as those in ``exp_configs/``.
        root: where the benchmark lies, in place of ``general.root_path``: its folder, or the folder that holds it
            under the name that the configuration's own root path ends with. None takes the environment's
            ``ABCROWN_VNNCOMP_ROOT``, and without that the configuration's.

    Raises:
        ConfigError: the configuration or the list cannot be read.
    """

    def __init__(self, config_path: str | Path, root: str | Path | None = None) -> None:
        builder = ConfigBuilder.from_yaml(config_path)
        root = root if root is not None else os.environ.get(ROOT_VARIABLE)
        config = builder.loaded().config
        name = config.general.csv_name or _LIST
        if root is not None:
            builder.set(general__root_path=str(_folder(Path(root), config.general.root_path, name)))
        self._loaded: LoadedConfig = builder.set(general__csv_name=name).loaded()
        self._instances = {instance.index: instance for instance in listed_instances(self._loaded.config)}

    @property
    def instances(self) -> tuple[Instance, ...]:
        """What is listed, in order: index, network, specification, timeout."""
        return tuple(self._instances.values())

    def __len__(self) -> int:
        return len(self._instances)

    def run_specific_instance(self, index: int) -> SolveResult:
        """Decide the instance of this number (rows are counted from 0).

        Raises:
            UserError: there is no such instance, or its files cannot be used.
        """
        if index not in self._instances:
            raise ConfigError(f"instance {index}: {self._loaded.config.general.csv_name} has {len(self)} instances")
        instance = replace(self._instances[index], config_dir=self._loaded.config_dir)
        return result_of(decide(self._loaded, instance), {}, None, instance.network)

    def run_all_instances(self) -> dict[int, SolveResult]:
        """Decide all instances in this process, one after the other: index -> result.

        For long lists `abcrown sweep` is better: it gives each instance a process of its own, and resumes.

        Raises:
            UserError: the files of an instance cannot be used.
        """
        return dict(self.results())

    def results(self) -> Iterator[tuple[int, SolveResult]]:
        """The same, as each instance ends."""
        for index in self._instances:
            yield index, self.run_specific_instance(index)


def _folder(root: Path, configured: str, name: str) -> Path:
    """The folder of the list below ``root``."""
    last = Path(configured).name
    below = root / last if last else root
    return root if (root / name).is_file() or not (below / name).is_file() else below
