"""Tables, checks and pictures of the study, from the file of figures alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from auto_LiRPA.parallel.memory_model import H100
from benchmarks.parallel.experiments.kinds import Chart, Check, Curves, Table
from benchmarks.parallel.scaled.kinds import MIB, Measured, Point, Predicted, Study
from benchmarks.parallel.scaled.timing import Pace, Series, calibrated, crosses
from benchmarks.parallel.starting import Figures

FAR = (8, 64, 512)
LIMIT = 0.15  # of the planner's peaks
GPU, MARGIN = 80 * 2**30, 1.15  # as the planner says what fits
TP_LIMIT = 1e-5  # relative to 1 + |sum of bounds|
ALL_MODES = ("single", "offload", "rows", "domains", "fsdp", "fsdp+rows", "fsdp+domains", "offload+rows",
             "offload+domains", "tp", "fsdp+rows/2", "tp+rows/2")  # fmt: skip


@dataclass(frozen=True)
class Results:
    """One experiment's points: what was measured, with the model's word on each."""

    study: Study
    points: tuple[Measured, ...]
    reduced: bool
    asked: dict[tuple[Point, int], Predicted | None] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study, figures: Iterable[Figures], reduced: bool) -> Results:
        """Of equal points the last one counts."""
        found = {one.point: one for one in study.measured(figures)}
        return cls(study, tuple(sorted(found.values(), key=lambda one: _order(one.point))), reduced)

    @cached_property
    def by_point(self) -> dict[Point, Measured]:
        """Every point."""
        return {one.point: one for one in self.points}

    def predict(self, point: Point) -> Predicted | None:
        """The model's word; it is asked once for each point."""
        key = (point, point.undecided, point.left_open)
        if key not in self.asked:
            self.asked[key] = self.study.predict(point)
        return self.asked[key]

    def reference(self, point: Point) -> Measured | None:
        """The same on one rank."""
        return self.by_point.get(_at(point, point.one_rank, 1, point.size))

    def root(self, setting: str, mode: str) -> Measured | None:
        """Where weak scaling of a mode begins."""
        size = self.study.weak(setting, 1, self.reduced)
        one = Point(exp=self.study.exp, setting=setting, size=size or "", mode=mode, world=1)
        return self.by_point.get(_at(one, one.one_rank, 1, one.size))

    def series(self, setting: str, size: str) -> Series:
        """All modes and numbers of ranks of one size, with predictions."""
        found: dict[tuple[str, int], tuple[Measured, Predicted]] = {}
        for one in self.points:
            if (one.point.setting, one.point.size) == (setting, size):
                predicted = self.predict(one.point)
                if predicted is not None:
                    found[one.point.mode, one.point.world] = (one, predicted)
        return found

    def pace(self, point: Point, weak: bool) -> Pace | None:
        """Calibrated on the point's own size, or on the sizes of weak scaling at P = 1 and 2."""
        if not weak:
            return calibrated(self.series(point.setting, point.size), point.mode)
        first, second = (self.study.weak(point.setting, world, self.reduced) or "" for world in (1, 2))
        ones = {key: one for key, one in self.series(point.setting, first).items() if key[1] == 1}
        twos = {key: one for key, one in self.series(point.setting, second).items() if key[1] == 2}
        own = calibrated({**ones, **twos}, point.mode, self.study.apart(point.setting))
        return own or calibrated(self.series(point.setting, first), point.mode)


def _at(point: Point, mode: str, world: int, size: str) -> Point:
    return Point(exp=point.exp, setting=point.setting, size=size, mode=mode, world=world)


def _order(point: Point) -> tuple[object, ...]:
    digits = "".join(letter if letter.isdigit() else " " for letter in point.size).split()
    mode = ALL_MODES.index(point.mode) if point.mode in ALL_MODES else len(ALL_MODES)
    return point.setting, [int(part) for part in digits], mode, point.mode, point.world


# -- measured --------------------------------------------------------------------------------------------------------
def tables(results: Results) -> Iterator[Table]:
    """What was measured: strong and weak scaling."""
    study = results.study
    yield Table(
        f"Experiment {study.exp}, strong scaling: {study.title}",
        ("setting", "size", "mode", "P", "ms", "times as fast", "efficiency", "collectives' share", "traffic MiB",
         "peak MiB", "weights MiB", "same bits", "shared host", ""),
        [_strong(results, one) for one in results.points],
        "ms: of the slowest rank; efficiency: time of one rank / (P x time). share: of the time in which a rank's"
        " collectives run, hidden or not. Free-running: ms for a million sub-problems.",
    )  # fmt: skip
    yield Table(
        f"Experiment {study.exp}, weak scaling: what grows is the {study.grows}",
        ("setting", "mode", "P", "size", "work / work at P=1", "ms", "efficiency", "collectives' share", "peak MiB"),
        [line for one in results.points for line in _weak(results, one)],
        "efficiency: work done a second and rank, as a share of one rank's at P=1.",
    )  # fmt: skip


def _strong(results: Results, one: Measured) -> Sequence[object]:
    base, point = results.reference(one.point), one.point
    faster = None if base is None else base.seconds / one.seconds
    same = None
    if base is not None and one.bits is not None and base.bits is not None:
        same = one.bits == base.bits
    return (point.setting, point.size, point.mode, point.world, 1e3 * one.seconds, faster,
            None if faster is None else faster / point.world, one.share, one.traffic_mib, one.peak_mib, one.weight_mib,
            same, "yes" if one.shared_host else "", one.told)  # fmt: skip


def _weak(results: Results, one: Measured) -> Iterator[Sequence[object]]:
    point = one.point
    if point.size != results.study.weak(point.setting, point.world, results.reduced):
        return
    root = results.root(point.setting, point.mode)
    grown = None if root is None or not root.work or one.work is None else one.work / root.work
    efficiency = None if root is None or grown is None else grown * root.seconds / one.seconds / point.world
    yield (point.setting, point.mode, point.world, point.size, grown, 1e3 * one.seconds, efficiency, one.share,
           one.peak_mib)  # fmt: skip


# -- checks ----------------------------------------------------------------------------------------------------------
def checks(results: Results) -> Iterator[Check]:
    """Bits at every number of ranks; all ranks of a run agree; peaks within the planner's limit."""
    by_size: dict[tuple[str, str], dict[tuple[object, ...], list[Measured]]] = defaultdict(lambda: defaultdict(list))
    for one in results.points:
        if one.bits is not None:
            by_size[one.point.setting, one.point.size][one.bits].append(one)
    for (setting, size), found in by_size.items():
        names = ["{" + ", ".join(f"{o.point.mode} P={o.point.world}" for o in every) + "}" for every in found.values()]
        told = names[0] if len(found) == 1 else " differ from ".join(names)
        what = f"exp {results.study.exp}, {setting}, {size}: bits"
        yield Check(what, "equal in all modes, at every P", told, len(found) == 1)
    for one in results.points:
        base = results.reference(one.point)
        if one.point.mode.startswith("tp") and base is not None and one.near:
            off = max(abs(a - b) / (1 + abs(b)) for a, b in zip(one.near, base.near, strict=True))
            yield Check(f"{_name(one.point)}: sums of bounds", f"within {TP_LIMIT:g} of one rank's", f"{off:.1e}",
                        off <= TP_LIMIT)  # fmt: skip
    for one in results.points:
        digests = one.source.get("digests", [])
        if len(digests) > 1:
            yield Check(f"{_name(one.point)}: ranks", "agree", f"{len(digests)} different bounds", False)
    for one in results.points:
        predicted = results.predict(one.point) if one.peak_mib is not None else None
        if predicted is not None and one.peak_mib is not None:
            off = predicted.peak / MIB / one.peak_mib - 1
            what = f"{_name(one.point)}: peak, predicted {predicted.peak / MIB:.0f} MiB"
            yield Check(what, f"within {LIMIT:.0%}", f"{one.peak_mib:.0f} MiB ({off:+.1%})", abs(off) <= LIMIT, True)


def _name(point: Point) -> str:
    return f"exp {point.exp}, {point.setting}, {point.size}, {point.mode} P={point.world}"


# -- predicted -------------------------------------------------------------------------------------------------------
def predictions(results: Results, far: bool) -> Iterator[Table]:
    """The model against what was measured; ``far``: then what was not."""
    study = results.study
    lines, paces = [], {}
    for one in results.points:
        found = results.predict(one.point)
        if found is None:
            continue
        pace = results.pace(one.point, weak=False) or results.pace(one.point, weak=True)
        seconds = None if pace is None else pace.seconds(found, one.point.world)
        used = one.point.world <= 2
        if pace is not None and one.point.world > 1:
            paces[one.point.setting, one.point.size, one.point.mode] = pace.told
        lines.append((one.point.setting, one.point.size, one.point.mode, one.point.world, found.peak / MIB,
                      one.peak_mib, _off(found.peak / MIB, one.peak_mib), found.traffic_mib, one.traffic_mib,
                      None if seconds is None else 1e3 * seconds, 1e3 * one.seconds,
                      "calibrates" if used and seconds is not None else _off(seconds, one.seconds)))  # fmt: skip
    yield Table(
        f"Experiment {study.exp}: PREDICTED against measured",
        ("setting", "size", "mode", "P", "peak MiB, predicted", "measured", "off", "traffic MiB, predicted",
         "measured", "ms, predicted", "measured", "off"),
        lines,
        "Time of P = 1 and 2 calibrates the model. " + "; ".join(f"{' '.join(k)}: {v}" for k, v in paces.items()),
    )  # fmt: skip
    yield Table(
        f"Experiment {study.exp}: PREDICTED on paper, not measured",
        ("scaling", "setting", "mode", "P", "size", "peak MiB of a rank", "weights", "blocks", "tile", "rest",
         "fits 80 GiB", "work of the busiest rank", "traffic MiB", "ms", "efficiency"),
        list(_far(results)) if far else [],
        f"work: {study.unit}. ms and efficiency only where P = 1 and 2 were measured. Hosts of 8 GPUs; formulas and"
        " assumptions: docs/parallel_scaling.md.",
    )  # fmt: skip


def _off(predicted: float | None, measured: float | None) -> str | None:
    return None if predicted is None or not measured else f"{predicted / measured - 1:+.0%}"


def _far(results: Results) -> Iterator[Sequence[object]]:
    study = results.study
    for row in study.ahead():
        first = Point(exp=study.exp, setting=row.setting, size=row.size(1), mode="single", world=1)
        alone = results.reference(first)
        found_undecided = 0 if alone is None else alone.point.undecided
        left_open = 0 if alone is None else alone.point.left_open
        first = replace(first, undecided=row.undecided(1) or found_undecided, left_open=left_open)
        root = results.predict(first)
        for world in FAR:
            point = replace(first, size=row.size(world), mode=row.mode, world=world,
                            undecided=row.undecided(world) or found_undecided)  # fmt: skip
            found = results.predict(point)
            if found is None or root is None:
                continue
            pace = results.pace(point, row.weak)
            seconds = None if pace is None else pace.seconds(found, world, crosses(point.mode, world))
            whole = results.predict(replace(point, mode="single", world=1)) if row.weak else root
            efficiency = None
            if seconds is not None and alone is not None and whole is not None:
                efficiency = whole.work / root.work * alone.seconds / seconds / world
            parts = found.parts
            rest = sum(parts.values()) - parts["weights"] - parts["blocks"] - parts["tile"]
            yield ("weak" if row.weak else "strong", row.setting, row.mode, world, point.size, found.peak / MIB,
                   parts["weights"] / MIB, parts["blocks"] / MIB, parts["tile"] / MIB, rest / MIB,
                   found.peak * MARGIN + H100.context <= GPU, f"{found.work:.3g}",
                   found.traffic_mib, None if seconds is None else 1e3 * seconds, efficiency)  # fmt: skip


# -- pictures --------------------------------------------------------------------------------------------------------
def charts(results: Results) -> Iterator[Chart]:
    """Efficiency and peaks over P, a picture for each setting and size; weak scaling one for each setting."""
    strong: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    weak: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    peaks: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for one in results.points:
        point, base = one.point, results.reference(one.point)
        if base is not None and base.point.world != point.world:
            line = strong[point.setting, point.size][point.mode]
            line += [] if line else [(1.0, 1.0)]
            line.append((float(point.world), base.seconds / one.seconds))
        if one.peak_mib is not None and base is not None and base.peak_mib is not None and point.world > 1:
            line = peaks[point.setting, point.size][point.mode]
            line += [] if line else [(1.0, base.peak_mib)]
            line.append((float(point.world), one.peak_mib))
        for cells in _weak(results, one):
            if isinstance(cells[6], float):
                weak[point.setting][point.mode].append((float(point.world), cells[6]))
    head = f"exp {results.study.exp}"
    for (setting, size), lines in strong.items():
        yield Curves(_slug(f"strong {setting} {size}"), f"{head}, {setting}, {size}", "ranks", "times as fast as one",
                     _curves(lines))  # fmt: skip
    for setting, lines in weak.items():
        if any(len(line) > 1 for line in lines.values()):
            yield Curves(_slug(f"weak {setting}"), f"{head}, weak, {setting}", "ranks", "efficiency", _curves(lines))
    for (setting, size), lines in peaks.items():
        yield Curves(_slug(f"peak {setting} {size}"), f"{head}, {setting}, {size}", "ranks", "peak of a rank, MiB",
                     _curves(lines))  # fmt: skip


def _curves(lines: dict[str, list[tuple[float, float]]]) -> dict[str, tuple[tuple[float, float], ...]]:
    return {mode: tuple(sorted(points)) for mode, points in lines.items()}


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in text)
