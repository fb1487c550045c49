"""One line of a table of results: an instance and how it ended, as typed values and as cells of a CSV file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime

from complete_verifier.outcome import Verdict
from complete_verifier.reporting.report import InstanceReport

ERROR = "error"  # stands for a verdict where there is none: bad input, a crash, out of memory
VERDICTS = (Verdict.HOLDS.value, Verdict.VIOLATED.value, Verdict.UNKNOWN.value, Verdict.TIMEOUT.value, ERROR)
SOLVED = (Verdict.HOLDS.value, Verdict.VIOLATED.value)
BAD_INPUT_STATUS, CRASH_STATUS = "unknown-error", "unknown-crash"
_LATE = " (timed out)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One instance. Names are as in the list; times are seconds, memory is MiB, None is what was never known."""

    index: int
    onnx: str
    vnnlib: str
    timeout: float
    verdict: str
    status: str
    seconds: float
    phases: Mapping[str, float] = field(default_factory=dict)
    domains: int = 0
    rounds: int = 0
    worst_bound: float | None = None
    peak_mib: float | None = None
    device: str = ""
    message: str = ""
    finished_at: str = ""
    fingerprint: str = ""

    @property
    def late(self) -> bool:
        """Whether a verdict came after the time limit: it counts as a timeout then."""
        return self.status.endswith(_LATE)

    @property
    def solved(self) -> bool:
        """Whether the question was decided in time."""
        return self.verdict in SOLVED and not self.late


COLUMNS = tuple(entry.name for entry in fields(Row))


def row_of(report: InstanceReport, *, onnx: str = "", vnnlib: str = "", fingerprint: str = "") -> Row:
    """The line of a report. A verdict after the limit is marked in the status, as upstream does in lists."""
    failed = report.error is not None
    late = report.wall_s > report.timeout_s and "unknown" not in report.status
    search, peaks = report.search, [rank.peak_allocated_mib for rank in report.ranks]
    known = [peak for peak in peaks if peak is not None]
    return Row(
        index=report.index,
        onnx=onnx or report.network,
        vnnlib=vnnlib or report.specification,
        timeout=report.timeout_s,
        verdict=ERROR if failed else report.verdict.value,
        status=report.status + (_LATE if late else ""),
        seconds=round(report.wall_s, 4),
        phases={name: round(seconds, 4) for name, seconds in report.phases.items()},
        domains=0 if search is None else search.domains_visited,
        rounds=0 if search is None else search.rounds,
        worst_bound=None if search is None else _finite(search.worst_bound),
        peak_mib=round(max(known), 1) if known else None,
        device=", ".join(sorted({rank.device for rank in report.ranks})),
        message=one_line(report.error or report.stopped_by),
        finished_at=timestamp(),
        fingerprint=fingerprint,
    )


def timestamp() -> str:
    """Now, in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def one_line(text: str) -> str:
    """Text without line breaks or control characters, so that one row is one line of the file."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())


def cells_of(row: Row) -> list[str]:
    """The row as cells, in the order of `COLUMNS`. Reading them back gives the same row."""
    return [_cell(getattr(row, name)) for name in COLUMNS]


def row_from(cells: Mapping[str, str]) -> Row:
    """The row of named cells.

    Raises:
        ValueError, KeyError: a column is missing or has no fitting value.
    """
    if cells["verdict"] not in VERDICTS:
        raise ValueError(f"verdict {cells['verdict']!r}")
    return Row(
        index=int(cells["index"]),
        onnx=cells["onnx"],
        vnnlib=cells["vnnlib"],
        timeout=float(cells["timeout"]),
        verdict=cells["verdict"],
        status=cells["status"],
        seconds=float(cells["seconds"]),
        phases=_phases(cells["phases"]),
        domains=int(cells["domains"]),
        rounds=int(cells["rounds"]),
        worst_bound=_number(cells["worst_bound"]),
        peak_mib=_number(cells["peak_mib"]),
        device=cells["device"],
        message=cells["message"],
        finished_at=cells["finished_at"],
        fingerprint=cells["fingerprint"],
    )


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case Mapping():
            return " ".join(f"{name}={_cell(seconds)}" for name, seconds in value.items())
        case float():
            return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
        case _:
            return str(value)


def _phases(cell: str) -> dict[str, float]:
    pairs = (part.partition("=") for part in cell.split())
    return {name: float(seconds) for name, _, seconds in pairs}


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
