"""Results to compare with: another sweep's table, known verdicts, or another tool's results.

Read are: our own tables; CSV files with the columns onnx and vnnlib and any of expected, verdict (or result), seconds
(or time), `<tool>_result` and `<tool>_seconds`; VNN-COMP's results without a header
(category,onnx,vnnlib,prepare time,result,run time).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from auto_LiRPA.errors import ConfigError
from complete_verifier.reporting.rows import SOLVED, Row

_WORDS = {"holds": "unsat", "unsat": "unsat", "violated": "sat", "sat": "sat", "safe": "unsat", "unsafe": "sat"}
_VNNCOMP_COLUMNS = ("family", "onnx", "vnnlib", "prepare", "result", "time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of an instance. ``expected`` is its true verdict, ``verdict`` the other run's; '' where unknown."""

    onnx: str
    vnnlib: str
    family: str = ""
    expected: str = ""
    verdict: str = ""
    seconds: float | None = None

    @property
    def solved(self) -> bool:
        """Whether the other run decided it."""
        return self.verdict in SOLVED


class Reference:
    """Known results, found by the names of the files and, where these repeat, by their folders."""

    def __init__(self, name: str, rows: Sequence[Known]) -> None:
        self.name = name
        self.rows = tuple(rows)
        self._by_name: dict[tuple[str, str], list[Known]] = {}
        for row in rows:
            self._by_name.setdefault((_name(row.onnx), _name(row.vnnlib)), []).append(row)

    @property
    def has_results(self) -> bool:
        """Whether it holds another run's results, not only known verdicts."""
        return any(row.verdict for row in self.rows)

    def of(self, row: Row) -> Known | None:
        """What is known of our row; None if nothing is, or if entries that fit equally well say different things."""
        candidates = self._by_name.get((_name(row.onnx), _name(row.vnnlib)), [])
        best = max((_shared(row, known) for known in candidates), default=0)
        fitting = [known for known in candidates if _shared(row, known) == best]
        return fitting[0] if len({(known.expected, known.verdict) for known in fitting}) == 1 else None


def read_reference(path: Path) -> Reference:
    """Read a file to compare with.

    Raises:
        ConfigError: it cannot be read, or has none of the forms above.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"--compare {path}: cannot be read ({why})") from error
    try:
        return _reference(path, lines)
    except csv.Error as error:
        raise ConfigError(f"--compare {path}: not a table ({error})") from None


def _reference(path: Path, lines: Sequence[str]) -> Reference:
    header = next(csv.reader(lines[:1]), [])
    if {"onnx", "vnnlib"} <= set(header):
        rows, tool = list(csv.DictReader(lines)), _tool(header)
    elif len(header) == len(_VNNCOMP_COLUMNS):
        rows, tool = list(csv.DictReader(lines, fieldnames=_VNNCOMP_COLUMNS)), None
    else:
        raise ConfigError(f"--compare {path}: no columns onnx and vnnlib, nor the six of VNN-COMP's results")
    return Reference(tool or path.stem, [_known(cells, tool) for cells in rows])


def _tool(header: Sequence[str]) -> str | None:
    return next((name.removesuffix("_result") for name in header if name.endswith("_result") and name != "_result"
                 and not name.startswith("official")), None)  # fmt: skip


def _known(cells: Mapping[str, str | None], tool: str | None) -> Known:
    def cell(*names: str) -> str:
        return next((value.strip() for name in names if (value := cells.get(name))), "")

    word = cell(f"{tool}_result") if tool else cell("verdict", "result")
    return Known(
        onnx=cell("onnx"),
        vnnlib=cell("vnnlib"),
        family=cell("family", "category"),
        expected=_WORDS.get(cell("expected").lower(), ""),
        verdict=_WORDS.get(word.lower(), word.lower()),
        seconds=_seconds(cell(f"{tool}_seconds") if tool else cell("seconds", "time")),
    )


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _name(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name.removesuffix(".gz")


def _shared(row: Row, known: Known) -> int:
    """How many folders, from the file upwards, both paths share; the family counts as a folder."""
    ours, theirs = _folders(row.onnx), _folders(f"{known.family}/{known.onnx}")
    count = 0
    while count < min(len(ours), len(theirs)) and ours[count] == theirs[count]:
        count += 1
    return count


def _folders(path: str) -> list[str]:
    return [part for part in reversed(PurePosixPath(path.replace("\\", "/")).parts[:-1]) if part not in (".", "/")]
