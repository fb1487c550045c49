"""What an experiment is: the jobs that measure it, and what is made of their figures.

A module `expN.py` beside this one has ``EXPERIMENT = Experiment(...)``; `benchmarks/parallel/run.py` does the rest. A
figure is one JSON object, as `measuring.tell` and `by_command.py` write it. Nothing here runs or imports anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.parallel.starting import Figures, Job

__all__ = ["Bar", "Bars", "Chart", "Check", "Curves", "Experiment", "Figures", "Job", "Options", "Table", "at_least",
           "at_most", "equal", "latest"]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for. All paths are absolute; ``models``: where networks that have to be made are kept."""

    worlds: tuple[int, ...]
    reduced: bool
    repeats: int
    data: Path
    models: Path
    configs: Path

    @property
    def several(self) -> tuple[int, ...]:
        """The numbers of ranks above one."""
        return tuple(world for world in self.worlds if world > 1)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of measured figures; a cell may be text, a number, a truth, a list, or None (nothing was measured)."""

    title: str
    header: tuple[str, ...]
    lines: Sequence[Sequence[object]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to hold, and whether it does (None: it could not be told).

    ``goal``: of speed or memory; one that is missed is told, and the command ends well all the same.
    """

    what: str
    wanted: str
    measured: str
    met: bool | None
    goal: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: the sizes of its parts, from the bottom."""

    label: str
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Bars:
    """A picture of stacked bars; it is written to expN_``name``.png."""

    name: str
    title: str
    unit: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """A picture of lines, each a row of points (x, y)."""

    name: str
    title: str
    x: str
    y: str
    lines: Mapping[str, tuple[tuple[float, float], ...]]


Chart = Bars | Curves


def _no_charts(figures: list[Figures]) -> Iterator[Chart]:
    return iter(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One experiment of the paper.

    Attributes:
        paper: what the paper says.
        later: what its authors found when they measured again.
        jobs: what has to be run; a script's path is relative to `benchmarks/parallel`. It may make networks that are
            missing under ``Options.models`` (quickly), or have a first job make them.
    """

    number: int
    title: str
    paper: str
    later: str
    jobs: Callable[[Options], Iterable[Job]]
    tables: Callable[[list[Figures]], Iterable[Table]]
    checks: Callable[[list[Figures]], Iterable[Check]]
    bars: Callable[[list[Figures]], Iterable[Chart]] = _no_charts


def latest(figures: Iterable[Figures], *keys: str) -> dict[tuple[object, ...], Figures]:
    """The figures by the values of some keys; of equal ones the last."""
    return {tuple(one.get(key) for key in keys): one for one in figures}


def equal(what: str, wanted: object, measured: object) -> Check:
    """Both have to be the same."""
    return Check(what, shown(wanted), shown(measured), wanted == measured)


def at_most(what: str, limit: float, measured: float | None, *, goal: bool = False) -> Check:
    """An upper limit; ``measured`` None: it was not (memory on a CPU)."""
    return Check(what, f"<= {limit:.4g}", shown(measured), None if measured is None else measured <= limit, goal)


def at_least(what: str, limit: float, measured: float | None, *, goal: bool = False) -> Check:
    """A lower limit."""
    return Check(what, f">= {limit:.4g}", shown(measured), None if measured is None else measured >= limit, goal)


def shown(cell: object) -> str:
    """A cell as it is printed."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "NO"
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 1e4 else f"{cell:.4g}"
    if isinstance(cell, list | tuple):
        return ", ".join(shown(one) for one in cell)
    return str(cell)
