"""What the scaling study is made of: tasks that are run, points that were measured, what is predicted for a point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.parallel.experiments.kinds import Options
from benchmarks.parallel.starting import Figures, Job

MIB = 2**20
ONE_RANK = {"offload+rows": "offload", "offload": "offload"}  # what a mode is on one rank, if not `single`


@dataclass(frozen=True, slots=True)
class Task:
    """A job and how many ranks (GPUs) it takes (``job.ranks`` is 1 where the script starts its own).

    ``extra``: it is run after all others.
    """

    exp: int
    job: Job
    world: int
    extra: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What is measured or predicted: one size of an experiment in one setting, mode and number of ranks.

    ``undecided``: neurons that get rows or are split, ``left_open``: sub-problems of a rank at the end of a search that
    a clock ends; where only a measurement tells how many there are.
    """

    exp: int
    setting: str
    size: str
    mode: str
    world: int
    undecided: int = field(default=0, compare=False)
    left_open: int = field(default=0, compare=False)

    @property
    def one_rank(self) -> str:
        """The mode that one rank's figures of this mode are measured in."""
        return ONE_RANK.get(self.mode, "single")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One point's figures.

    ``seconds``: of the work, or of a unit of it where work has no end (a million sub-problems). ``bits``: digests and
    counts that have to be the same at every number of ranks; None where they need not be (tp, free-running).
    """

    point: Point
    seconds: float
    share: float | None
    traffic_mib: float | None
    peak_mib: float | None
    weight_mib: float | None
    bits: tuple[object, ...] | None
    near: tuple[float, ...] = ()  # sums of bounds: what tp, which adds in another order, comes close to
    work: float | None = None  # of the whole point: operations or sub-problems
    told: str = ""  # more to say: sub-problems a second, verdict
    shared_host: bool = False
    source: Figures = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What the memory model says of one rank. ``work``: of the busiest rank, in the study's unit.

    ``gathered``, ``exchanged``, ``copied``: bytes, as `memory_model.Work` has them; ``calls``: collectives.
    """

    peak: int
    parts: Mapping[str, int]
    work: float
    gathered: float
    exchanged: float
    copied: float
    calls: float

    @property
    def traffic_mib(self) -> float:
        """As the counters count it."""
        return (self.gathered + self.exchanged + self.copied) / MIB

    def wire(self, world: int) -> float:
        """Bytes that reach one rank: all but its own part of what is gathered; a sum goes round twice."""
        others = (world - 1) / world
        return self.gathered * others + 2 * self.exchanged * others + self.copied


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One experiment over numbers of ranks.

    ``grows``: what weak scaling makes larger with P. ``weak``: the size at P ranks in a setting, None where the setting
    has none. ``predict``: None where the model does not cover a point; ``unit``: of its work. ``ahead``: what is
    extended to numbers of ranks that were not measured. ``apart``: whether ranks wait for nobody in a setting.
    """

    exp: int
    title: str
    grows: str
    unit: str
    tasks: Callable[[Options], Iterable[Task]]
    measured: Callable[[Iterable[Figures]], Iterator[Measured]]
    weak: Callable[[str, int, bool], str | None]
    predict: Callable[[Point], Predicted | None]
    ahead: Callable[[], Iterable[Ahead]] = lambda: ()
    apart: Callable[[str], bool] = lambda setting: False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """A row of points on paper: ``size`` at P ranks (weak scaling) or the same at all (strong).

    ``undecided``: neurons that are assumed to get rows; 0: as many as one rank's measurement found.
    """

    setting: str
    mode: str
    size: Callable[[int], str]
    weak: bool
    undecided: Callable[[int], int] = lambda world: 0


def in_order(tasks: Iterable[Task]) -> list[Task]:
    """One rank first (the reference), then from the most ranks down; extras last."""
    return sorted(tasks, key=lambda task: (task.extra, task.world > 1, -task.world))


def number(one: Figures, key: str) -> float | None:
    """A figure's number, None where it has none."""
    value: Any = one.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
