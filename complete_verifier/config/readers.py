"""Reading one raw value: numbers, text, lists and references as upstream's shipped files write them.

Upstream never checks the values of a YAML file, and shipped files lean on that: numbers written as `1e-10` (text in
YAML 1.1), integers as `1e9`, one bare string where a list is meant. Those are read; everything else that does not fit
is refused.
"""

from __future__ import annotations

import ast
import json
import math
import reprlib
from collections.abc import Callable, Mapping
from typing import TypeVar

from auto_LiRPA.errors import ConfigError
from complete_verifier.config.customized import parse_reference

TRUE_WORDS = frozenset({"true", "yes", "on", "1"})
FALSE_WORDS = frozenset({"false", "no", "off", "0"})


class WrongValueError(Exception):
    """A raw value that does not fit its option; the message says what was expected."""


def show(value: object) -> str:
    """A short, one-line form of a raw value for messages."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else reprlib.repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


def read_bool(raw: object) -> bool:
    """true/false, their YAML 1.1 spellings, 0 and 1."""
    if isinstance(raw, bool):
        return raw
    word = str(raw).lower() if isinstance(raw, str | int) else ""
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise WrongValueError


def read_float(raw: object) -> float:
    """A number, or text that is one ("1e-10", ".inf"). NaN is never a setting."""
    if isinstance(raw, str):
        word = raw.strip().lower()
        try:
            raw = float(word.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            raise WrongValueError from None
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise WrongValueError
    try:
        number = float(raw)
    except OverflowError:
        raise WrongValueError("expected a number within the range of a float") from None
    if math.isnan(number):
        raise WrongValueError("expected a number, not NaN")
    return number


def read_int(raw: object) -> int:
    """An integer, a whole float (1e9), or text that is one of these."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if isinstance(raw, str):
        try:
            return int(raw)
        except ValueError:  # perhaps "1e9": a whole number all the same
            pass
    number = read_float(raw)
    if not number.is_integer():
        raise WrongValueError
    return int(number)


def read_text(raw: object) -> str:
    """Text; a number is refused, since YAML has already lost how it was written."""
    if not isinstance(raw, str):
        raise WrongValueError
    return raw


def read_text_or_empty(raw: object) -> str:
    return "" if raw is None else read_text(raw)


def read_reference(raw: object) -> str:
    """A name, a call with literal arguments or Customized(...): checked here, so that nothing else gets further."""
    text = read_text(raw)
    try:
        parse_reference(text)
    except ConfigError as error:
        raise WrongValueError(str(error)) from None
    return text


def read_customized(raw: object) -> str:
    if not (isinstance(raw, str) and raw.lstrip().startswith("Customized")):
        raise WrongValueError
    return read_reference(raw)


def read_name_or_customized(raw: object) -> str:
    """Free text such as a data set's name, unless it asks for user code: then that has to be well formed."""
    text = read_text(raw)
    return read_reference(text) if "Customized" in text else text


def literal_dict(text: str) -> dict[str, object]:
    """The dict written in `text` as Python literals; ConfigError for anything else. Never evaluates code."""
    if len(text) > 10_000:
        raise ConfigError(f"{show(text)}: longer than 10000 characters")
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{show(text)}: expected a dict of Python literals such as {{'Reshape': {{'fix': True}}}}")
    return value


def read_literal_dict(raw: object) -> str:
    """The dict in one spelling, so that two ways to write it compare equal."""
    text = repr(raw) if isinstance(raw, Mapping) else read_text(raw)
    try:
        return repr(literal_dict(text))
    except ConfigError:
        raise WrongValueError from None


_Number = TypeVar("_Number", int, float)


def bounded(
    read: Callable[[object], _Number],
    *,
    ge: float = -math.inf,
    gt: float | None = None,
    le: float = math.inf,
    finite: bool = False,
) -> Callable[[object], _Number]:
    """`read`, then a range check."""

    def convert(raw: object) -> _Number:
        number = read(raw)
        too_low = number < ge or (gt is not None and number <= gt)
        if too_low or number > le or (finite and math.isinf(number)):
            raise WrongValueError
        return number

    return convert


def read_whole_or_inf(raw: object) -> int | float:
    number = read_float(raw)
    return number if number == math.inf else read_int(raw)


def or_auto(read: Callable[[object], int | float]) -> Callable[[object], object]:
    def convert(raw: object) -> object:
        return "auto" if raw == "auto" else read(raw)

    return convert


def listed(read: Callable[[object], object], *, at_least_one: bool = False) -> Callable[[object], tuple[object, ...]]:
    """A list; a bare value is a list of one, a text with commas is a list of its parts."""

    def convert(raw: object) -> tuple[object, ...]:
        values = list(raw) if isinstance(raw, list | tuple) else [raw]
        parts: list[object] = []
        for value in values:
            split = [part.strip() for part in value.split(",")] if isinstance(value, str) else [value]
            parts.extend(part for part in split if part != "")
        if at_least_one and not parts:
            raise WrongValueError
        return tuple(read(part) for part in parts)

    return convert


def read_size(raw: object) -> int:
    size = read_int(raw)
    if size < 1 and size != -1:
        raise WrongValueError
    return size
