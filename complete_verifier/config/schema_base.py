"""What every section of the configuration shares: frozen, closed, and one flag and sentence per option."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A group of options. Unknown names are refused; values never change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def option(default: object, flag: str, meaning: str, *, sets: bool | None = None, off_flag: str | None = None) -> Any:
    """An option: its default, command-line flag and one sentence of meaning.

    A flag without a value stores `sets`; left out, a boolean's flag stores the opposite of its default. `off_flag` is
    a second flag that stores the opposite of the first.
    """
    if sets is None and isinstance(default, bool):
        sets = not default
    return Field(
        default=default, description=meaning, json_schema_extra={"flag": flag, "sets": sets, "off_flag": off_flag}
    )


def section(model: type[Section], key: str | None = None) -> Any:
    """A nested section; `key` is its YAML name where that is no Python name."""
    return Field(default_factory=model, alias=key)
