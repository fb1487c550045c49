"""The command line: which flags exist, and the words of one command line sorted by option."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, NoReturn

from auto_LiRPA.errors import ConfigError
from complete_verifier.config.options import Option, option_table
from complete_verifier.config.readers import show
from complete_verifier.config.run_options import RunOptions

# Signed numbers that argparse itself takes for flags: -1e-3, -.5e2, -inf.
_SIGNED_NUMBER = re.compile(r"-(\.?\d[\d._]*([eE][+-]?\d+)?|\.?inf)", re.IGNORECASE)
_OURS = ("parallel.", "bab.checkpoint", "bab.refine.")


@dataclass(frozen=True, slots=True)
class FlagValue:
    """What the command line said about one option."""

    raw: object
    flag: str


@dataclass(frozen=True, slots=True)
class CommandLine:
    """One command line, unchecked: raw values by path, and the assignments of --set in their order."""

    settings: Mapping[str, FlagValue]
    run: Mapping[str, FlagValue]
    config: str | None
    assignments: tuple[tuple[str, str], ...]


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints as ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(re.sub(r"^argument (--\S+?)(/--\S+)?:", r"\1:", message))


class _Store(argparse.Action):
    """Keep the flag as it was written beside its value, so that messages and origins can name it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        raw = self.const if self.nargs == 0 else _unguarded(values)
        setattr(namespace, self.dest, FlagValue(raw, flag or self.dest))


def build_parser() -> argparse.ArgumentParser:
    """The parser of all flags, grouped by section."""
    parser = _Parser(
        prog="abcrown",
        usage="abcrown --config FILE.yaml [--flag value ...]",
        description="Prove or refute properties of neural networks.",
        allow_abbrev=False,  # abbreviations are spelt out before, upstream's flags first
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="set any option by its path, as bab.timeout=60"
    )
    run = parser.add_argument_group("this run")
    for option in option_table(RunOptions).values():
        _add(run, option, f"run:{option.path}")
    group_name, group = "", run
    for option in option_table().values():
        if option.path.rpartition(".")[0] != group_name:
            group_name = option.path.rpartition(".")[0]
            group = parser.add_argument_group(group_name)
        _add(group, option, option.path)
    return parser


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Sort the words of a command line by option; ConfigError for a flag that does not exist or lacks its value."""
    parser = build_parser()
    words = [_spell_out(word) for word in argv]
    namespace, left_over = parser.parse_known_args(words)
    if left_over:
        raise ConfigError(f"{show(left_over[0])}: unexpected word; every setting is given as --flag value")
    values = dict(vars(namespace))
    config, assignments = values.pop("config"), tuple(_assignment(word) for word in values.pop("set"))
    run = {name[4:]: value for name, value in values.items() if name.startswith("run:")}
    settings = {path: value for path, value in values.items() if not path.startswith("run:")}
    return CommandLine(settings, run, config, assignments)


def _add(group: argparse._ArgumentGroup, option: Option, dest: str) -> None:
    help_text = f"{option.meaning} [{_shown(option.default)}]".replace("%", "%%")
    common: dict[str, Any] = {"dest": dest, "default": argparse.SUPPRESS, "action": _Store, "help": help_text}
    if option.sets is None:
        metavar = "X" if "number" in option.kind.name or "integer" in option.kind.name else "WORD"
        group.add_argument(option.flag, nargs="*" if option.kind.many else None, metavar=metavar, **common)
        return
    group.add_argument(option.flag, nargs=0, const=option.sets, **common)
    if option.off_flag is not None:
        group.add_argument(option.off_flag, nargs=0, const=not option.sets, **common)


def _shown(default: object) -> str:
    """A default in the help text. (Writing 300 values by a YAML library would take longer than all the rest.)"""
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    return ", ".join(str(part) for part in default) if isinstance(default, tuple) else str(default)


def _assignment(word: str) -> tuple[str, str]:
    path, equals, value = word.partition("=")
    if not equals:
        raise ConfigError(f"--set {show(word)}: expected path=value, as in --set bab.timeout=60")
    return path.strip(), value


def _unguarded(values: str | list[str]) -> str | list[str]:
    """The words as they were typed: without the blank that `_spell_out` puts before signed numbers."""
    if isinstance(values, list):
        return [word[1:] if _SIGNED_NUMBER.fullmatch(word[1:]) else word for word in values]
    return values[1:] if _SIGNED_NUMBER.fullmatch(values[1:]) else values


# -- abbreviations ----------------------------------------------------------------------------------------------------
@cache
def _upstream_flags() -> tuple[str, ...]:
    """Flags that users of upstream may have abbreviated: new flags must not make those ambiguous."""
    known = [option for option in option_table().values() if not option.path.startswith(_OURS)]
    return ("--config", *(option.flag for option in known))


@cache
def _all_flags() -> tuple[str, ...]:
    options = [*option_table(RunOptions).values(), *option_table().values()]
    flags = [flag for option in options for flag in (option.flag, option.off_flag) if flag is not None]
    return ("-h", "--help", "--config", "--set", *flags)


def _spell_out(word: str) -> str:
    """`word` with an abbreviated flag written in full, and a signed number guarded."""
    if _SIGNED_NUMBER.fullmatch(word):
        return " " + word  # argparse takes no word with a blank for a flag
    name, equals, value = word.partition("=")
    if not name.startswith("-") or name in ("-", "--", *_all_flags()):
        return word
    for flags in (_upstream_flags(), _all_flags()):
        fitting = [flag for flag in flags if name.startswith("--") and flag.startswith(name)]
        if len(fitting) == 1:
            return fitting[0] + equals + value
        if fitting:
            raise ConfigError(f"{name}: ambiguous: could be {', '.join(fitting[:6])}")
    spelled = "--" + name[2:].replace("-", "_")  # torchrun's users write both
    if name.startswith("--") and spelled in _all_flags():
        return spelled + equals + value
    near = get_close_matches(name, _all_flags(), n=1, cutoff=0.5)
    hint = f"perhaps {near[0]}?" if near else "abcrown --help lists all flags"
    raise ConfigError(f"{name}: unknown flag; {hint}")
