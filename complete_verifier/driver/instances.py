"""Which instances a command asks for: one network and property, the rows of a list, or examples of a data set."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import Config


@dataclass(frozen=True, slots=True)
class Instance:
    """One network and one property, by their files, or by names where they are none.

    ``timeout_s``: what the list says about it, if anything. ``config_dir``: user code is looked up there.
    """

    index: int
    network: Path
    specification: Path
    timeout_s: float | None = None
    config_dir: Path | None = None


def is_list(config: Config) -> bool:
    """Whether a list is to be run; a property that is named by itself wins over the list."""
    return config.general.csv_name is not None and config.specification.vnnlib_path is None


def is_dataset(config: Config) -> bool:
    """Whether examples of a data set are to be run."""
    named = config.data.dataset is not None or config.data.pkl_path is not None
    return named and config.general.csv_name is None and config.specification.vnnlib_path is None


def network_name(config: Config) -> Path | None:
    """The network's file, or what builds it.

    Raises:
        ConfigError: both are given, or weights for no module.
    """
    if config.model.name is None:
        if config.model.path is not None:
            raise ConfigError("model.path holds weights for the module of model.name, which is missing; give both")
        return None if config.model.onnx_path is None else Path(config.model.onnx_path)
    if config.model.onnx_path is not None:
        raise ConfigError("model.name and model.onnx_path both name a network; keep one of the two")
    return Path(config.model.name)


def single_instance(config: Config, config_dir: Path | None = None) -> Instance:
    """The one instance that is named.

    Raises:
        ConfigError: the network or the property is missing.
    """
    network, specification = network_name(config), config.specification.vnnlib_path
    if network is None and specification is None:
        raise ConfigError("nothing to verify: give --onnx_path and --vnnlib_path, or a list with --csv_name")
    if network is None:
        raise ConfigError("model.onnx_path is missing: specification.vnnlib_path alone names no network")
    if specification is None:
        raise ConfigError(f"specification.vnnlib_path is missing: {_given(config)} alone asks nothing")
    return Instance(0, network, Path(specification), config_dir=config_dir)


def _given(config: Config) -> str:
    return "model.onnx_path" if config.model.name is None else "model.name"


def listed_instances(config: Config) -> tuple[Instance, ...]:
    """The rows of the list that are to be run, in order.

    A row is ``onnx,vnnlib,timeout``, or ``vnnlib`` alone where ``model.onnx_path`` or ``model.name`` names the network.
    Paths start from ``general.root_path``, with the prefixes of ``model.onnx_path_prefix`` and
    ``specification.vnnlib_path_prefix`` in front.

    Raises:
        ConfigError: the list cannot be read, a row has another form, or none of the rows asked for exists.
    """
    root, name = Path(config.general.root_path), config.general.csv_name
    assert name is not None
    path = root / name
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(
            f"{path}: cannot be read ({why}); general.csv_name is relative to general.root_path"
        ) from error
    reader = csv.reader(text.splitlines())
    try:
        rows = [_instance(config, root, path, reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.line_num}: not a row onnx,vnnlib,timeout ({error})") from None
    instances = [Instance(i, *row) for i, row in enumerate(rows)]
    return tuple(instances[i] for i in _chosen(config, len(instances), path))


def _instance(config: Config, root: Path, path: Path, line: int, row: list[str]) -> tuple[Path, Path, float | None]:
    cells = [cell.strip() for cell in row]
    place = f"{path}: line {line}"
    if len(cells) == 1:
        network = network_name(config)
        if network is None:
            raise ConfigError(
                f"{place}: a row with a property only needs model.onnx_path; or write onnx,vnnlib,timeout"
            )
        return network, _below(root, config.specification.vnnlib_path_prefix, cells[0]), None
    if len(cells) != 3:
        raise ConfigError(f"{place}: {len(cells)} columns; a row is onnx,vnnlib,timeout")
    try:
        seconds = float(cells[2])
    except ValueError:
        seconds = float("nan")
    if not seconds > 0:
        raise ConfigError(f"{place}: timeout {cells[2]!r}: give a number of seconds above 0")
    if config.model.name is not None:
        raise ConfigError(f"{place}: names a network, and so does model.name; leave one of the two out")
    network = _below(root, config.model.onnx_path_prefix, cells[0])
    return network, _below(root, config.specification.vnnlib_path_prefix, cells[1]), seconds


def _below(root: Path, prefix: str, cell: str) -> Path:
    return root / prefix / cell


def _chosen(config: Config, count: int, path: Path) -> list[int]:
    data = config.data
    if data.select_instance is not None:
        wrong = [i for i in data.select_instance if i >= count]
        if wrong:
            raise ConfigError(f"data.select_instance = {wrong[0]}: {path} has {count} rows, counted from 0")
        return list(data.select_instance)
    if data.start >= count:
        raise ConfigError(f"data.start = {data.start}: {path} has {count} rows, counted from 0")
    return list(range(data.start, min(data.end, count)))
