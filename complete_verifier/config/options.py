"""The options of the schema as a flat table: path, flag, kind, default and meaning of each.

Everything that is said about an option once in the schema (parser, YAML checks, documentation) is derived from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from pydantic.fields import FieldInfo

from complete_verifier.config.kinds import Choice, Kind
from complete_verifier.config.schema import Config
from complete_verifier.config.schema_base import Section


@dataclass(frozen=True, slots=True)
class Option:
    """One leaf of the configuration. `sets` is what a flag without a value stores, None if the flag takes values."""

    path: str
    attributes: tuple[str, ...]
    flag: str
    sets: bool | None
    off_flag: str | None
    default: object
    kind: Kind
    meaning: str

    def of(self, root: Section) -> Any:
        """The option's value in `root`."""
        value: Any = root
        for name in self.attributes:
            value = getattr(value, name)
        return value


@cache
def option_table(root: type[Section] = Config) -> Mapping[str, Option]:
    """All options below `root` by path, in the order of the schema."""
    return MappingProxyType({option.path: option for option in _walk(root, (), ())})


@cache
def section_paths(root: type[Section] = Config) -> frozenset[str]:
    """The paths of all sections below `root`."""
    parts = (path.split(".")[:-1] for path in option_table(root))
    return frozenset(".".join(names[:depth]) for names in parts for depth in range(1, len(names) + 1))


def _walk(section: type[Section], keys: tuple[str, ...], names: tuple[str, ...]) -> Iterator[Option]:
    for name, field in section.model_fields.items():
        key = field.alias or name
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from _walk(annotation, (*keys, key), (*names, name))
        else:
            yield _option(field, (*keys, key), (*names, name))


def _option(field: FieldInfo, keys: tuple[str, ...], names: tuple[str, ...]) -> Option:
    facts: Any = field.json_schema_extra
    return Option(
        path=".".join(keys),
        attributes=names,
        flag=facts["flag"],
        sets=facts["sets"],
        off_flag=facts["off_flag"],
        default=field.default,
        kind=_kind(field),
        meaning=field.description or "",
    )


def _kind(field: FieldInfo) -> Kind:
    for fact in field.metadata:
        if isinstance(fact, Kind):
            return fact
        if isinstance(fact, Choice):
            return fact.bind(field.annotation)
    raise TypeError(f"an option without a kind: {field!r}")
