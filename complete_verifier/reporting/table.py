"""A table of results on disk: one row is written as each instance ends, so that an interrupted run loses none."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from auto_LiRPA.errors import ConfigError
from complete_verifier.reporting.results import write_atomically
from complete_verifier.reporting.rows import COLUMNS, Row, cells_of, row_from


def read_table(path: Path) -> list[Row]:
    """The rows of a table, the last of an index counting; none if there is no file.

    A last line without its end was being written when the run was killed: it is left out.

    Raises:
        ConfigError: it is not a table of results.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not a text file'}") from error
    whole = text[: text.rfind("\n") + 1]
    if not whole:
        if text and not _line(COLUMNS).startswith(text):
            raise ConfigError(f"{path}: not a table of results; name another file or folder")
        return []
    reader = csv.DictReader(io.StringIO(whole))
    try:
        columns = tuple(reader.fieldnames or ())
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.line_num}: not a table of results ({error})") from None
    if columns != COLUMNS:
        raise ConfigError(f"{path}: not a table of results (its columns are others); name another file or folder")
    rows: dict[int, Row] = {}
    for number, cells in lines:
        try:
            row = row_from(cells)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: line {number}: {error}: not a row of results") from None
        rows[row.index] = row
    return list(rows.values())


class Table:
    """A table that is being written. A row is handed to the system in one piece and is on the disk afterwards."""

    def __init__(self, path: Path, rows: Iterable[Row] = ()) -> None:
        """Start a table, with rows that are known already, in place of whatever file is there.

        Raises:
            ConfigError: it cannot be written.
        """
        self.path = path
        self._rows = {row.index: row for row in rows}
        self._write_all()

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, in the order of their indices."""
        return tuple(self._rows[index] for index in sorted(self._rows))

    def append(self, row: Row) -> None:
        """Add a row.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                _write(descriptor, _line(cells_of(row)).encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._refused(error) from error
        self._rows[row.index] = row

    def sort(self) -> None:
        """Write the rows anew in the order of their indices, whatever order they ended in."""
        if self.path.is_file():
            self._write_all()

    def _write_all(self) -> None:
        lines = [_line(COLUMNS), *(_line(cells_of(row)) for row in self.rows)]
        try:
            write_atomically(self.path, "".join(lines).encode())
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self.path}: cannot be written ({error.strerror}); rows so far are kept")


def _write(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # a pipe or a device


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
