"""Settings from Python: the keys of the YAML files, checked as they are set."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import LoadedConfig, load_config, load_mapping
from complete_verifier.config.options import option_table
from complete_verifier.config.yaml_file import plain

logger = logging.getLogger(__name__)

ConfigDict = dict[str, Any]

# What differs from the command line's defaults.
_DEFAULTS: Mapping[str, object] = {"general.complete_verifier": "auto"}
_ORIGIN = "config"


def default_config() -> ConfigDict:
    """All settings with their defaults, nested as in a YAML file.

    Those of the command line, but that ``general.complete_verifier`` is ``auto`` and ``general.device`` a device that
    there is (``cuda`` where one is available).
    """
    return ConfigBuilder.from_defaults().to_dict()


class ConfigBuilder:
    """Collects settings. Every call checks them at once and returns the builder itself, so that calls can be chained.

    ``ConfigBuilder.from_defaults().set(general__device="cpu", bab__timeout=60)()``
    """

    def __init__(self) -> None:
        self._given: dict[str, object] = dict(_DEFAULTS)
        self._file: Path | None = None  # user code that the settings name is looked up beside it
        self._loaded = load_mapping(_nested(self._given), _ORIGIN)

    @classmethod
    def from_defaults(cls) -> Self:
        """Nothing but defaults, see `default_config`."""
        return cls()

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """The settings of a YAML file, as ``abcrown --config`` reads it.

        Raises:
            ConfigError: it cannot be read, or a key or value in it is wrong.
        """
        loaded = load_config(["--config", str(path)])
        for note in loaded.notes:
            logger.warning("%s", note)
        builder = cls()._with(_values(loaded))
        builder._file = loaded.config_file
        return builder

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | ConfigBuilder) -> Self:
        """The settings of a nested mapping (as `default_config` and `to_dict` return it), or of another builder.

        Raises:
            ConfigError: a key or value is wrong.
        """
        if isinstance(config, ConfigBuilder):
            builder = cls()._with(config._given)
            builder._file = config._file
            return builder
        return cls().update(config)

    def set(self, **settings: object) -> Self:
        """Settings by path, with two underscores for the dot: ``set(solver__beta_crown__iteration=20)``.

        Raises:
            ConfigError: there is no such setting, or the value does not fit it.
        """
        return self._with({_path(name): value for name, value in settings.items()})

    def update(self, settings: Mapping[str, Any]) -> Self:
        """Settings as a nested mapping with the keys of a YAML file.

        Raises:
            ConfigError: there is no such setting, or a value does not fit it.
        """
        return self._with(_values(load_mapping(_mapping(settings), _ORIGIN)))

    def to_dict(self) -> ConfigDict:
        """All settings, nested as in a YAML file; with the device that will be used where none is set."""
        config = self._loaded.config
        values = {path: plain(option.of(config)) for path, option in option_table().items()}
        if not self._loaded.is_set("general.device") and not torch.cuda.is_available():
            values["general.device"] = "cpu"
        return _nested(values)

    def __call__(self) -> ConfigDict:
        """`to_dict`."""
        return self.to_dict()

    def loaded(self) -> LoadedConfig:
        """The checked settings, with what was set and what is a default: what the solver takes."""
        return replace(self._loaded, config_file=self._file)

    def _with(self, values: Mapping[str, object]) -> Self:
        checked = load_mapping(_nested({**self._given, **values}), _ORIGIN)
        # A value that is the default counts as not set, but for the device: that is a demand.
        self._given = {
            path: value
            for path, value in _values(checked).items()
            if value != option_table()[path].default or path == "general.device" or path in _DEFAULTS
        }
        self._loaded = load_mapping(_nested(self._given), _ORIGIN)
        return self


def _values(loaded: LoadedConfig) -> dict[str, object]:
    """What was set, by path."""
    return {path: option.of(loaded.config) for path, option in option_table().items() if loaded.is_set(path)}


def _path(name: str) -> str:
    """``solver__beta_crown__iteration`` -> ``solver.beta-crown.iteration``."""
    path = name.replace("__", ".")
    known = {option.replace("-", "_"): option for option in option_table()}
    return known.get(path.replace("-", "_"), path)


def _nested(values: Mapping[str, object]) -> ConfigDict:
    root: ConfigDict = {}
    for path, value in values.items():
        *sections, leaf = path.split(".")
        place = root
        for name in sections:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{_ORIGIN}: {path}: {name} is a setting, not a section")
        place[leaf] = value
    return root


def _mapping(settings: object) -> Mapping[str, Any]:
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{_ORIGIN}: expected a mapping with YAML's keys, found {type(settings).__name__}")
    return settings
