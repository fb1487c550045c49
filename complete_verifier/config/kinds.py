"""Kinds of option values: what a user may write, as a type, a phrase for messages, and a reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from complete_verifier.config.readers import (
    WrongValueError,
    bounded,
    listed,
    or_auto,
    read_bool,
    read_customized,
    read_float,
    read_int,
    read_literal_dict,
    read_name_or_customized,
    read_reference,
    read_size,
    read_text,
    read_text_or_empty,
    read_whole_or_inf,
)

NULL_WORDS = frozenset({"None", "none", "null", "~"})


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value: its name in the documentation and its conversion (raises WrongValueError)."""

    name: str
    convert: Callable[[object], object]
    nullable: bool = False
    many: bool = False
    choices: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """What a user may write, as a phrase."""
        return f"{self.name} or null" if self.nullable else self.name

    def read(self, raw: object) -> object:
        """The typed value of `raw`; WrongValueError if it does not fit."""
        if self.nullable and (raw is None or (isinstance(raw, str) and raw in NULL_WORDS)):
            return None
        try:
            return self.convert(raw)
        except WrongValueError as wrong:
            raise WrongValueError(str(wrong) or f"expected {self.expected}") from None

    def validate(self, raw: object) -> object:
        """`read` for pydantic, which wants its own exception."""
        try:
            return self.read(raw)
        except WrongValueError as wrong:
            raise PydanticCustomError("wrong_value", "{why}", {"why": str(wrong)}) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)


@dataclass(frozen=True, slots=True)
class Choice:
    """A closed list of words, taken from the field's Literal annotation.

    `off_list` reads words that upstream accepts outside its own list; None means that it does not know the word.
    """

    off_list: Callable[[str], str | None] | None = None
    also: tuple[str, ...] = ()  # descriptions of further forms, for the documentation
    other: Callable[[object], object] | None = None  # reads those further forms (raises WrongValueError)

    def bind(self, annotation: Any) -> Kind:
        """The Kind of a field annotated with Literal[...] or Literal[...] | None (or a union holding one)."""
        words, nullable = _literal_words(annotation)
        return Kind("one of " + ", ".join((*words, *self.also)), self._converter(words), nullable, False, words)

    def _converter(self, words: tuple[str, ...]) -> Callable[[object], object]:
        def convert(raw: object) -> object:
            if isinstance(raw, str) and raw in words:
                return raw
            known = self.off_list(raw) if self.off_list is not None and isinstance(raw, str) else None
            if known is not None:
                return known
            if self.other is not None:
                return self.other(raw)
            near = get_close_matches(raw, words, n=1) if isinstance(raw, str) else []
            hint = f'; perhaps "{near[0]}"?' if near else ""
            raise WrongValueError(f"expected one of {', '.join((*words, *self.also))}{hint}")

        return convert

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return self.bind(source).__get_pydantic_core_schema__(source, handler)


def _literal_words(annotation: Any) -> tuple[tuple[str, ...], bool]:
    words: list[str] = []
    nullable = False
    for part in get_args(annotation):
        if part is type(None):
            nullable = True
        elif isinstance(part, str):
            words.append(part)
        else:
            words.extend(word for word in get_args(part) if isinstance(word, str))
    return tuple(words), nullable


_WHOLE = "an integer"
_natural, _count = bounded(read_int, ge=0), bounded(read_int, ge=1)
_positive, _finite = bounded(read_float, gt=0), bounded(read_float, finite=True)
_finite_nonneg = bounded(read_float, ge=0, finite=True)

Bool = Annotated[bool, Kind("true or false", read_bool)]
Text = Annotated[str, Kind("text", read_text_or_empty)]
OptText = Annotated[str | None, Kind("text", read_text, nullable=True)]
Int = Annotated[int, Kind(_WHOLE, read_int)]
OptInt = Annotated[int | None, Kind(_WHOLE, read_int, nullable=True)]
Seed = Annotated[int, Kind("an integer from 0 to 4294967295", bounded(read_int, ge=0, le=2**32 - 1))]
Natural = Annotated[int, Kind("an integer >= 0", _natural)]
OptNatural = Annotated[int | None, Kind("an integer >= 0", _natural, nullable=True)]
Count = Annotated[int, Kind("an integer >= 1", _count)]
OptCount = Annotated[int | None, Kind("an integer >= 1", _count, nullable=True)]
CountOrNone = Annotated[int, Kind("an integer >= -1", bounded(read_int, ge=-1))]
WholeOrInf = Annotated[int | float, Kind("an integer or .inf", read_whole_or_inf)]
Float = Annotated[float, Kind("a number", read_float)]
OptFloat = Annotated[float | None, Kind("a number", read_float, nullable=True)]
OptFinite = Annotated[float | None, Kind("a finite number", _finite, nullable=True)]
NonNegative = Annotated[float, Kind("a finite number >= 0", _finite_nonneg)]
OptNonNegative = Annotated[float | None, Kind("a finite number >= 0", _finite_nonneg, nullable=True)]
Positive = Annotated[float, Kind("a number > 0", _positive)]
OptPositive = Annotated[float | None, Kind("a number > 0", _positive, nullable=True)]
FinitePositive = Annotated[float, Kind("a finite number > 0", bounded(read_float, gt=0, finite=True))]
Norm = Annotated[float, Kind("a number >= 1 or .inf", bounded(read_float, ge=1))]
StepSize = Annotated[float | Literal["auto"], Kind("auto or a finite number >= 0", or_auto(_finite_nonneg))]
CountOrAuto = Annotated[int | Literal["auto"], Kind("auto or an integer >= 1", or_auto(_count))]
Texts = Annotated[tuple[str, ...], Kind("a list of text", listed(read_text), many=True)]
Naturals = Annotated[
    tuple[int, ...] | None, Kind("a list of integers >= 0", listed(_natural), nullable=True, many=True)
]
Shape = Annotated[
    tuple[int, ...] | None,
    Kind("a list of sizes (-1 = any)", listed(read_size, at_least_one=True), nullable=True, many=True),
]
Floats = Annotated[tuple[float, ...], Kind("a list of finite numbers", listed(_finite, at_least_one=True), many=True)]
OptFloats = Annotated[
    tuple[float, ...] | None,
    Kind("a list of finite numbers", listed(_finite, at_least_one=True), nullable=True, many=True),
]
Scales = Annotated[
    tuple[float, ...],
    Kind("a list of numbers > 0", listed(bounded(read_float, gt=0, finite=True), at_least_one=True), many=True),
]
Hook = Annotated[str, Kind('a name or Customized("file.py", "callable")', read_reference)]
OptHook = Annotated[str | None, Kind('a name or Customized("file.py", "callable")', read_reference, nullable=True)]
OptDataset = Annotated[
    str | None, Kind('a name or Customized("file.py", "callable")', read_name_or_customized, nullable=True)
]
OptLiteralDict = Annotated[str | None, Kind("a dict of Python literals", read_literal_dict, nullable=True)]

CHOICE = Choice()
CHOICE_OR_CUSTOMIZED = Choice(also=('Customized("file.py", "callable")',), other=read_customized)
