"""From a command line to checked settings: defaults, then the YAML file, then flags."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from auto_LiRPA.errors import ConfigError
from complete_verifier.config.flags import CommandLine, parse_command_line
from complete_verifier.config.options import option_table, section_paths
from complete_verifier.config.readers import show
from complete_verifier.config.run_options import RunOptions
from complete_verifier.config.schema import Config
from complete_verifier.config.yaml_file import read_yaml, read_yaml_file, yaml_text

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Given:
    """A raw value and where it was given."""

    raw: object
    origin: str


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """Checked settings, where each came from, and how the command was called.

    `notes` are lines for the user about values that were read as something else than what was written.
    """

    config: Config
    origins: Mapping[str, str]
    options: RunOptions = field(default_factory=RunOptions)
    config_file: Path | None = None
    notes: tuple[str, ...] = ()

    def is_set(self, path: str) -> bool:
        """Whether the user gave this option, even if with its default value."""
        return self.origins[path] != DEFAULT

    @property
    def config_dir(self) -> Path | None:
        """Folder of the YAML file, from which Customized files are looked up."""
        return None if self.config_file is None else self.config_file.resolve().parent

    def with_values(self, values: Mapping[str, object], origin: str) -> LoadedConfig:
        """A copy with some options changed (by path), as an instance list or user code asks for."""
        given = {path: Given(option.of(self.config), self.origins[path]) for path, option in option_table().items()}
        for path, raw in values.items():
            given.update(_flatten(_nested({path: raw}), origin))
        changed = _build(given)
        return replace(changed, options=self.options, config_file=self.config_file, notes=self.notes + changed.notes)


def load_config(argv: Sequence[str]) -> LoadedConfig:
    """Read a command line and the YAML file that it names.

    Raises ConfigError, one line that names file or flag, option and what was expected, for anything unfit.
    """
    line = parse_command_line(argv)
    options = _run_options(line)
    config_file = _config_file(line)
    given: dict[str, Given] = {}
    if config_file is not None:
        given.update(_flatten(read_yaml_file(config_file, str(config_file)), str(config_file)))
    given.update({path: Given(value.raw, value.flag) for path, value in line.settings.items()})
    given.update(_assigned(line))
    loaded = _build(given)
    return _adjusted(replace(loaded, options=options, config_file=config_file))


def load_mapping(values: Mapping[str, Any], origin: str = "given settings") -> LoadedConfig:
    """Settings from nested mappings with YAML's keys, for use from Python."""
    return _adjusted(_build(_flatten(values, origin)))


# -- sources ----------------------------------------------------------------------------------------------------------
def _config_file(line: CommandLine) -> Path | None:
    if line.config is not None:
        return Path(line.config)
    root = line.settings.get("general.root_path")
    return Path(str(root.raw)) / "config.yaml" if root is not None else None


def _assigned(line: CommandLine) -> dict[str, Given]:
    given: dict[str, Given] = {}
    for path, text in line.assignments:
        value = read_yaml(text, f"--set {path}")
        for leaf, entry in _flatten(_nested({path: value}), "--set").items():
            if leaf in line.settings:
                raise ConfigError(f"--set {leaf}: also given by {line.settings[leaf].flag}; keep one of the two")
            given[leaf] = entry
    return given


def _run_options(line: CommandLine) -> RunOptions:
    try:
        options = RunOptions.model_validate({name: value.raw for name, value in line.run.items()})
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][0])
        raise ConfigError(f"{line.run[name].flag} {show(fault['input'])}: {fault['msg']}") from None
    for name in ("world_size", "gpu_mem_gib", "undecided", "plan_json"):
        if name in line.run and not options.plan:
            machine = name in ("world_size", "gpu_mem_gib")
            what = "describes the machine of a plan" if machine else "says how a plan is made"
            raise ConfigError(f"{line.run[name].flag}: {what}; add --plan, or --nproc to run")
    return options


def _nested(values: Mapping[str, object]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}"""
    root: dict[str, Any] = {}
    for path, value in values.items():
        *sections, leaf = path.split(".")
        place = root
        for name in sections:
            place = place.setdefault(name, {})
        place[leaf] = value
    return root


def _flatten(values: object, origin: str) -> dict[str, Given]:
    """Leaves by path; ConfigError for a key that is not in the schema."""
    return {path: Given(raw, origin) for path, raw in _leaves(values, "", origin)}


def _leaves(values: object, prefix: str, origin: str) -> Iterator[tuple[str, object]]:
    if values is None:  # an empty file or section
        return
    if not isinstance(values, Mapping):
        what = f"{prefix} = {show(values)}" if prefix else show(values)
        raise ConfigError(f"{origin}: {what}: expected a section, that is key: value lines")
    for key, value in values.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if path in option_table():
            yield path, value
        elif path in section_paths():
            yield from _leaves(value, path, origin)
        else:
            raise ConfigError(f"{origin}: {path}: unknown key; {_nearest(path)}")


def _nearest(path: str) -> str:
    """The likeliest meaning of an unknown path: a misspelt key of this section, or a key of another one."""
    prefix, _, key = path.rpartition(".")
    known = [*option_table(), *sorted(section_paths())]
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == prefix}
    near = get_close_matches(key.replace("_", "-"), [name.replace("_", "-") for name in siblings], n=1)
    for name, full in siblings.items():
        if near and name.replace("_", "-") == near[0]:
            return f"perhaps {full}?"
    elsewhere = [name for name in known if name.rpartition(".")[2] == key] or get_close_matches(path, known, n=1)
    if elsewhere:
        return f"perhaps {' or '.join(elsewhere[:3])}?"
    return f"{prefix or 'the file'} has: {', '.join(siblings)}"[:300]


# -- checking ---------------------------------------------------------------------------------------------------------
def _build(given: Mapping[str, Given]) -> LoadedConfig:
    try:
        config = Config.model_validate(_nested({path: entry.raw for path, entry in given.items()}))
    except ValidationError as error:
        fault = error.errors()[0]
        path = ".".join(str(part) for part in fault["loc"])
        raise ConfigError(_wrong(path, given[path], fault["msg"])) from None
    origins = {path: given[path].origin if path in given else DEFAULT for path in option_table()}
    notes = tuple(_off_list_notes(config, given))
    return LoadedConfig(config, origins, notes=notes)


def _wrong(path: str, entry: Given, why: str) -> str:
    option = option_table()[path]
    return f"{entry.origin}: {path} = {show(entry.raw)}: {why}; the default is {yaml_text(option.default)}"


def _off_list_notes(config: Config, given: Mapping[str, Given]) -> Iterator[str]:
    for path, entry in given.items():
        option = option_table()[path]
        value = option.of(config)
        if option.kind.choices and isinstance(entry.raw, str) and isinstance(value, str) and value != entry.raw:
            yield f"{entry.origin}: {path} = {show(entry.raw)}: not one of the choices; read as {value}"


def _adjusted(loaded: LoadedConfig) -> LoadedConfig:
    """What follows from several settings together, as upstream has it."""
    root = loaded.config.general.root_path
    if "$CONFIG_PATH" in root:
        if loaded.config_dir is None:
            raise ConfigError(f"general.root_path = {show(root)}: $CONFIG_PATH needs a configuration file (--config)")
        resolved = root.replace("$CONFIG_PATH", str(loaded.config_dir))
        loaded = loaded.with_values({"general.root_path": resolved}, loaded.origins["general.root_path"])
    norm = loaded.config.specification.norm
    if norm != math.inf and loaded.config.attack.pgd_order != "skip":
        note = f"attack.pgd_order = skip: the attack knows the infinity norm only, and specification.norm = {norm:g}"
        loaded = loaded.with_values({"attack.pgd_order": "skip"}, "specification.norm")
        loaded = replace(loaded, notes=(*loaded.notes, note))
    return loaded
