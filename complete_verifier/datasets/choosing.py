"""Which examples of a data set are run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from auto_LiRPA.errors import ConfigError


def chosen_examples(
    count: int,
    *,
    start: int,
    end: int,
    select: Sequence[int] | None,
    index_file: Path | None,
    source: str,
) -> list[int]:
    """Indices of the examples to run, in order: those selected, else ``start:end`` of the index file or of all.

    Raises:
        ConfigError: an index is not there, the file cannot be read, or nothing is left to run.
    """
    if select is not None:
        return _checked(select, count, "data.select_instance", source)
    indices: Sequence[int] = range(count)
    if index_file is not None:
        indices = _checked(_read_indices(index_file), count, str(index_file), source)
    if start >= len(indices):
        raise ConfigError(f"data.start = {start}: {source} has {len(indices)} examples to run, counted from 0")
    chosen = list(indices[start:end])
    if not chosen:
        raise ConfigError(f"data.end = {end}: nothing is left to run from data.start = {start}; end is exclusive")
    return chosen


def _checked(indices: Sequence[int], count: int, setting: str, source: str) -> list[int]:
    wrong = [i for i in indices if not 0 <= i < count]
    if wrong:
        raise ConfigError(f"{setting}: example {wrong[0]} does not exist: {source} has {count}, counted from 0")
    return list(indices)


def _read_indices(path: Path) -> list[int]:
    try:
        words = path.read_text(encoding="utf-8").replace(",", " ").split()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{path}: cannot be read ({why}); data.data_idx_file is a text file of indices") from None
    try:
        return [int(word) for word in words]
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; data.data_idx_file holds whole numbers only") from None
