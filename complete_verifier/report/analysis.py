"""The figures that the report shows, from the rows and what they are compared with."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from complete_verifier.outcome import Verdict
from complete_verifier.report.reference import Known, Reference
from complete_verifier.reporting.rows import ERROR, SOLVED, VERDICTS, Row

PHASES = ("load", "attack", "incomplete", "bab")  # in this order, others behind
LATE = "late"  # how a verdict after its limit is shown
_OPPOSITE = {Verdict.HOLDS.value: Verdict.VIOLATED.value, Verdict.VIOLATED.value: Verdict.HOLDS.value}


@dataclass(frozen=True, slots=True)
class Entry:
    """A row and what is known about it."""

    row: Row
    known: Known | None
    family: str

    @property
    def wrong(self) -> bool:
        """Whether the verdict contradicts the true one."""
        return self.known is not None and _OPPOSITE.get(self.row.verdict, "-") == self.known.expected

    @property
    def disputed(self) -> bool:
        """Whether the other run says the opposite, and nothing settles who is right."""
        known = self.known
        contradicts = known is not None and _OPPOSITE.get(self.row.verdict, "-") == known.verdict
        return contradicts and known is not None and known.expected == ""

    @property
    def kind(self) -> str:
        """The verdict as it counts: a late one is none."""
        return LATE if self.row.late else self.row.verdict


@dataclass(frozen=True, slots=True)
class Group:
    """Some entries together."""

    name: str
    entries: tuple[Entry, ...]

    def count(self, *kinds: str) -> int:
        """How many entries have one of these verdicts."""
        return sum(entry.kind in kinds for entry in self.entries)

    @property
    def solved(self) -> int:
        return sum(entry.row.solved for entry in self.entries)

    @property
    def reference_solved(self) -> int:
        return sum(entry.known is not None and entry.known.solved for entry in self.entries)

    @property
    def seconds(self) -> float:
        return sum(entry.row.seconds for entry in self.entries)

    @property
    def median_solved(self) -> float | None:
        times = [entry.row.seconds for entry in self.entries if entry.row.solved]
        return statistics.median(times) if times else None

    @property
    def peak_mib(self) -> float | None:
        return max((entry.row.peak_mib for entry in self.entries if entry.row.peak_mib is not None), default=None)

    @property
    def phases(self) -> dict[str, float]:
        """Seconds per phase; what no phase accounts for is left out."""
        names = dict.fromkeys([*PHASES, *(name for entry in self.entries for name in entry.row.phases)])
        sums = {name: sum(entry.row.phases.get(name, 0.0) for entry in self.entries) for name in names}
        return {name: seconds for name, seconds in sums.items() if seconds > 0}


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything that the page shows."""

    all: Group
    groups: tuple[Group, ...]
    grouped_by: str
    reference: Reference | None

    @property
    def wrong(self) -> list[Entry]:
        return [entry for entry in self.all.entries if entry.wrong]

    @property
    def disputed(self) -> list[Entry]:
        return [entry for entry in self.all.entries if entry.disputed]

    @property
    def failed(self) -> list[Entry]:
        return [entry for entry in self.all.entries if entry.row.verdict == ERROR]

    @property
    def late(self) -> list[Entry]:
        return [entry for entry in self.all.entries if entry.row.late]

    @property
    def checked(self) -> int:
        """How many of our verdicts could be compared with a true one."""
        return sum(
            entry.row.verdict in SOLVED and entry.known is not None and entry.known.expected != ""
            for entry in self.all.entries
        )


def analyse(rows: Sequence[Row], reference: Reference | None) -> Analysis:
    """Match the rows with the reference and group them: by family where there are several, else by network."""
    known = [None if reference is None else reference.of(row) for row in rows]
    entries = [Entry(row, found, _family(row, found)) for row, found in zip(rows, known, strict=True)]
    families = _grouped((entry.family, entry) for entry in entries)
    by_family = len(families) > 1
    groups = families if by_family else _grouped((network_name(entry.row), entry) for entry in entries)
    return Analysis(Group("all", tuple(entries)), groups, "family" if by_family else "network", reference)


def network_name(row: Row) -> str:
    """The network's file, without its folder and ending."""
    return _stem(row.onnx, ".onnx")


def property_name(row: Row) -> str:
    """The property's file, without its folder and ending."""
    return _stem(row.vnnlib, ".vnnlib")


def cactus(times: Iterable[float]) -> list[tuple[int, float]]:
    """How many instances are solved within how many seconds each: (1, shortest), (2, second shortest), ..."""
    return list(enumerate(sorted(times), start=1))


def kinds(group: Group) -> list[tuple[str, int]]:
    """How many entries of each verdict, those that occur."""
    counted = [(kind, group.count(kind)) for kind in (*VERDICTS[:2], LATE, *VERDICTS[2:])]
    return [(kind, count) for kind, count in counted if count]


def _grouped(pairs: Iterable[tuple[str, Entry]]) -> tuple[Group, ...]:
    found: dict[str, list[Entry]] = {}
    for name, entry in pairs:
        found.setdefault(name, []).append(entry)
    return tuple(Group(name, tuple(entries)) for name, entries in found.items())


def _family(row: Row, known: Known | None) -> str:
    """The folder above `onnx/`, else what the reference says, else the first of several folders."""
    folders = [part for part in PurePosixPath(row.onnx).parts[:-1] if part not in (".", "/")]
    if "onnx" in folders[1:]:
        return folders[folders.index("onnx", 1) - 1]
    if known is not None and known.family:
        return known.family
    return folders[0] if folders and folders[0] != "onnx" else ""


def _stem(path: str, ending: str) -> str:
    return PurePosixPath(path).name.removesuffix(".gz").removesuffix(ending)
