"""Files that a run reads and files that it writes: nothing that is read may be lost, and no file is written twice."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import LoadedConfig
from complete_verifier.driver.instances import Instance, is_dataset, is_list

Named = tuple[str, Path]  # what a file is (a setting, for those that are written), and its path


def refuse_losses(loaded: LoadedConfig, instances: Iterable[Instance], more: Iterable[Named] = ()) -> None:
    """To be called before any file is taken away or written.

    Args:
        instances: what is to be run; their files are read.
        more: files that are written beside those of the settings.

    Raises:
        ConfigError: a file that is to be written is one that the run reads, or is written by two settings.
    """
    read = {_identity(path): what for what, path in _read(loaded, instances)}
    written: dict[object, str] = {}
    for setting, path in (*more, *_written(loaded)):
        identity = _identity(path)
        if identity is None:
            continue
        if identity in read:
            raise ConfigError(f"{setting} = {path}: is {read[identity]}, which would be lost; name another file")
        if identity in written:
            raise ConfigError(f"{setting} = {path}: is the file of {written[identity]} too; name another file")
        written[identity] = setting


def results_of(loaded: LoadedConfig) -> Sequence[Named]:
    """The results file, for runs that write one."""
    return (("general.results_file", Path(loaded.config.general.results_file)),)


def _written(loaded: LoadedConfig) -> Iterator[Named]:
    config, options = loaded.config, loaded.options
    if options.stats_file is not None:
        yield "--stats_file", Path(options.stats_file)
    if config.general.save_adv_example:
        yield "attack.cex_path", Path(config.attack.cex_path)
    if config.general.save_output and (is_list(config) or is_dataset(config)):
        yield "general.output_file", Path(config.general.output_file)
    if config.debug.save_minimal_config is not None:
        yield "debug.save_minimal_config", Path(config.debug.save_minimal_config)


def _read(loaded: LoadedConfig, instances: Iterable[Instance]) -> Iterator[Named]:
    config = loaded.config
    if loaded.config_file is not None:
        yield "the configuration (--config)", loaded.config_file
    if config.general.csv_name is not None:
        yield "the list (general.csv_name)", Path(config.general.root_path) / config.general.csv_name
    for what, name in (
        ("a network (model.onnx_path)", config.model.onnx_path),
        ("the weights (model.path)", config.model.path),
        ("a property (specification.vnnlib_path)", config.specification.vnnlib_path),
        ("the examples (data.pkl_path)", config.data.pkl_path),
        ("the indices (data.data_idx_file)", config.data.data_idx_file),
    ):
        if name is not None:
            yield what, Path(name)
    for instance in instances:
        yield "a network", instance.network
        yield "a property", instance.specification


def _identity(path: Path) -> object:
    """What two names of one file share, links included; None for a device such as /dev/null."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return os.path.abspath(path) if "\0" in str(path) else os.path.realpath(path)
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) else None
