"""The rule for options that do not act yet: a warning if they only steer the search, an error otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from auto_LiRPA.errors import ConfigError
from complete_verifier.config.load import LoadedConfig
from complete_verifier.config.options import Option, option_table
from complete_verifier.config.run_options import RunOptions
from complete_verifier.config.support_table import SUPPORT, Status, Support
from complete_verifier.config.yaml_file import yaml_text


@dataclass(frozen=True, slots=True)
class _Setting:
    """One option's value in a run, as it is called in messages."""

    key: str
    option: Option
    value: object
    origin: str
    given: bool


def support_of(key: str) -> Support:
    """The line of the table that speaks for an option's path or a flag: its own, or that of the nearest section."""
    path = key
    while path not in SUPPORT:
        path, dot, _ = path.rpartition(".")
        if not dot:
            raise KeyError(key)
    return SUPPORT[path]


def check_supported(loaded: LoadedConfig) -> list[str]:
    """Lines to warn the user with: values read as something else, and options that only steer and do not act yet.

    Raises ConfigError for options that would change the question but do not act.
    """
    warnings, refusals = list(loaded.notes), list[tuple[str, str]]()
    for setting in _settings(loaded):
        support = support_of(setting.key)
        if not _concerned(setting, support):
            continue
        place = setting.origin if setting.origin == setting.key else f"{setting.origin}: {setting.key}"
        what = f"{place} = {yaml_text(setting.value)}"
        if support.status is Status.STEERS and not _is_hook(setting.value):
            warnings.append(f"{what}: does not act: {support.reason}")
        else:
            reason = support.reason if support.status is Status.REFUSED else "user code is not called here"
            refusals.append((setting.key, f"{what}: not supported: {reason}"))
    if refusals:
        (_, first), *others = refusals
        also = f" (also {', '.join(key for key, _ in others)})" if others else ""
        raise ConfigError(f"{first}; leave it out{also}")
    return warnings


def _settings(loaded: LoadedConfig) -> Iterator[_Setting]:
    for path, option in option_table().items():
        yield _Setting(path, option, option.of(loaded.config), loaded.origins[path], loaded.is_set(path))
    for option in option_table(RunOptions).values():
        value = option.of(loaded.options)
        yield _Setting(option.flag, option, value, option.flag, value != option.default)


def _concerned(setting: _Setting, support: Support) -> bool:
    """Whether the value is one that does not act."""
    default = setting.value == setting.option.default
    if default and not (support.even_default and setting.given):
        return False
    if setting.value in support.acting:
        return False
    if _is_hook(setting.value):
        return not support.hooks
    if support.status is Status.ACTS:
        return False
    values = setting.value if isinstance(setting.value, tuple) else (setting.value,)
    return any(value not in support.acting for value in values)


def _is_hook(value: object) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Customized")
