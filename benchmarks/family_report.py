"""Rows of a run over benchmark families, and what is said about them: CSV, summary lines, a Markdown page."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

GRACE_S = 2.0  # a verdict may come so much later than the limit
DECIDED = ("sat", "unsat")


@dataclass(frozen=True, slots=True)
class Row:
    """One instance: what is known about it, and what came out. ``replay``: of a `sat`, ok or the fault found."""

    family: str
    onnx: str
    vnnlib: str
    config: str
    limit: float
    expected: str
    verdict: str
    seconds: float
    replay: str
    note: str
    peer_verdict: str
    peer_seconds: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.family, self.onnx, self.vnnlib

    @property
    def decided(self) -> bool:
        return self.verdict in DECIDED

    @property
    def wrong(self) -> bool:
        """Against the known verdict, or a counterexample that is none."""
        return {self.verdict, self.expected} == set(DECIDED) or (self.verdict == "sat" and self.replay != "ok")

    @property
    def late(self) -> bool:
        return self.seconds > self.limit + GRACE_S

    @property
    def name(self) -> str:
        return f"{Path(self.onnx).stem} {Path(self.vnnlib).stem}"


COLUMNS = tuple(field.name for field in fields(Row))


def read_rows(path: Path) -> dict[tuple[str, str, str], Row]:
    """The last row of each instance; none where there is no file.

    Raises:
        SystemExit: the file has other columns.
    """
    if not path.exists() or path.stat().st_size == 0:
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise SystemExit(f"{path}: has other columns than this script writes; take another --out")
        rows = [_row(record) for record in reader]
    return {row.key: row for row in rows}


def _row(record: dict[str, str]) -> Row:
    text = {name: record[name] for name in COLUMNS if name not in ("limit", "seconds")}
    return Row(**text, limit=float(record["limit"]), seconds=float(record["seconds"]))  # type: ignore[arg-type]


def append_row(path: Path, row: Row) -> None:
    """Add one row, with the heading where the file is new. Each row is on the disk before the next instance ends."""
    new = not path.exists() or path.stat().st_size == 0
    with open(path, "a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(asdict(row) | {"seconds": f"{row.seconds:.2f}", "limit": f"{row.limit:g}"})


@dataclass(frozen=True, slots=True)
class Summary:
    """One family: counts over its rows."""

    family: str
    run: int
    known: int
    solved: int
    beyond: int
    wrong: int
    late: int
    errors: int
    mean_s: float
    slowest: str


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """Families in the order in which they occur. ``solved``: of those known; ``beyond``: decided though unknown."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row.family, []).append(row)
    return [_summary(family, members) for family, members in families.items()]


def _summary(family: str, rows: Sequence[Row]) -> Summary:
    known = [row for row in rows if row.expected in DECIDED]
    slowest = max((row for row in rows if row.decided), key=lambda row: row.seconds, default=None)
    return Summary(
        family=family,
        run=len(rows),
        known=len(known),
        solved=sum(row.decided and not row.wrong for row in known),
        beyond=sum(row.decided and not row.wrong for row in rows if row.expected not in DECIDED),
        wrong=sum(row.wrong for row in rows),
        late=sum(row.late for row in rows),
        errors=sum(row.verdict.startswith("error") for row in rows),
        mean_s=sum(row.seconds for row in rows) / len(rows),
        slowest="" if slowest is None else f"{slowest.name} {slowest.seconds:.1f} s",
    )


def summary_line(summary: Summary) -> str:
    """One family in one line of text."""
    share = f"{100 * summary.solved / summary.known:.0f} %" if summary.known else "-"
    return (
        f"{summary.family}: solved {summary.solved} of {summary.known} known ({share}), "
        f"{summary.beyond} beyond, {summary.wrong} wrong, {summary.late} late, {summary.errors} errors; "
        f"{summary.run} run, mean {summary.mean_s:.1f} s; slowest solved: {summary.slowest or 'none'}"
    )


def markdown(rows: Sequence[Row], about: str) -> str:
    """A page: how it was made, a table of families, a table of instances."""
    lines = [
        "# Benchmark families against known verdicts", "", about, "",
        "| family | run | known | solved | beyond | wrong | late | errors | mean s | slowest solved |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --- |",
    ]  # fmt: skip
    for one in summarise(rows):
        lines.append(
            f"| {one.family} | {one.run} | {one.known} | {one.solved} | {one.beyond} | {one.wrong} | {one.late} "
            f"| {one.errors} | {one.mean_s:.1f} | {one.slowest} |"
        )
    lines += [
        "", "Solved: of those whose verdict is known. Beyond: decided though nobody's verdict is known.", "",
        "| family | instance | limit | expected | verdict | seconds | replay | peer | peer's seconds | note |",
        "| --- | --- | --: | --- | --- | --: | --- | --- | --: | --- |",
    ]  # fmt: skip
    for row in rows:
        note = row.note.replace("|", "/")
        lines.append(
            f"| {row.family} | {row.name} | {row.limit:g} | {row.expected} | {row.verdict} | {row.seconds:.2f} "
            f"| {row.replay} | {row.peer_verdict} | {row.peer_seconds} | {note} |"
        )
    return "\n".join(lines) + "\n"
