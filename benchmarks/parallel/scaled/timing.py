"""A time model for the study: what is computed, what every rank does by itself, and traffic that is not hidden.

    seconds(P) = serial + work(P) * pace + (together + calls(P) * latency) * ceil(log2 P) + wire(P) / link

``work`` and ``wire`` are the memory model's counts for the busiest rank (`predicting`). Of each series (experiment,
setting, size) the rest is calibrated from its own measured points at P = 1 and 2, so the points at P > 2 are what the
model can fail at:

- `rows`, `domains`: serial and pace are the line through P = 1 and 2 (Amdahl's law). Where a rank's work does not
  fall from P = 1 to 2 (weak scaling), or its time does not, pace is that of P = 1 and what P = 2 takes beyond is
  ``together``, which only ranks that wait for each other have.
- modes that move weights or partial sums: pace and serial of `rows`/`domains` where that was measured, else pace from
  P = 1; what P = 2 took beyond it, less the latencies, gives the link: bytes a second *as seen*, hidden parts included.
  Nothing beyond it: the link is not seen, and what the machine's own figure (below) would take counts where computing
  does not hide it.
- the host's link of `offload` is calibrated at P = 1.

Assumed, not measured: the latency of a collective grows with log2 P; within a host the link of a GPU does not depend on
P (NVSwitch); between hosts a GPU has ``NETWORK`` bytes a second; the host's memory is shared by no more GPUs than at
P = 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from auto_LiRPA.parallel.memory_model import H100
from benchmarks.parallel.scaled.kinds import Measured, Point, Predicted
from benchmarks.parallel.scaled.predicting import HOST

NETWORK = 50e9  # bytes a second of one GPU between hosts: one 400 Gbit/s adapter each
PLAIN = ("rows", "domains")


@dataclass(frozen=True, slots=True)
class Pace:
    """Calibrated figures of one series in one mode; ``link`` None: no traffic was seen beside computing."""

    per_work: float
    serial: float
    together: float
    latency: float
    link: float | None
    told: str

    def seconds(self, found: Predicted, world: int, network: bool = False) -> float:
        """Of the busiest rank. ``network``: what ranks exchange goes between hosts."""
        computing = self.serial + found.work * self.per_work
        waiting = (self.together + found.calls * self.latency) * math.ceil(math.log2(world))
        wire = found.wire(world)
        if self.link is None:
            moving = max(0.0, wire / (NETWORK if network else H100.gather) - computing)
        else:
            moving = wire / (min(self.link, NETWORK) if network else self.link)
        return computing + waiting + moving


Series = Mapping[tuple[str, int], tuple[Measured, Predicted]]  # by mode and number of ranks


def calibrated(series: Series, mode: str, apart: bool = False) -> Pace | None:
    """From the points at P = 1 and 2; None if they are missing.

    ``apart``: ranks wait for nobody, so that a rank of many is as fast as one of two.
    """
    base = _base(mode)
    one = series.get((_alone(base), 1))
    two = series.get((base, 2))
    if one is None:
        return None
    if base in PLAIN:
        return None if two is None else _first(two) if apart else _amdahl(one, two)
    plain = next((series[name, 2] for name in PLAIN if (name, 2) in series), None)
    single = series.get(("single", 1))
    pace = _amdahl(single, plain) if single and plain else None
    if pace is None:
        pace = _first(single or one)
    if base.startswith("offload"):
        return _with_link(pace, one, 1, 0.0)
    return None if two is None else _with_link(pace, two, 2, H100.call)


def _alone(mode: str) -> str:
    return Point(exp=0, setting="", size="", mode=mode, world=1).one_rank


def _first(one: tuple[Measured, Predicted]) -> Pace:
    per_work = one[0].seconds / one[1].work
    return Pace(per_work, 0.0, 0.0, 0.0, None, f"{1 / per_work:.3g} a second")


def _amdahl(one: tuple[Measured, Predicted], two: tuple[Measured, Predicted]) -> Pace:
    (first, all_work), (second, share) = one, two
    less, faster = all_work.work - share.work, first.seconds - second.seconds
    if less <= 0 or faster <= 0:
        pace = _first(one)
        together = max(0.0, second.seconds - share.work * pace.per_work)
        return replace(pace, together=together, told=f"{pace.told}, {1e3 * together:.3g} ms together")
    serial = first.seconds - all_work.work * faster / less
    if serial < 0:  # faster than by half: a line through both would begin below zero
        return _first(one)
    return Pace(faster / less, serial, 0.0, 0.0, None, f"{less / faster:.3g} a second, {1e3 * serial:.3g} ms serial")


def _with_link(pace: Pace, point: tuple[Measured, Predicted], world: int, latency: float) -> Pace:
    measured, found = point
    calm = pace.seconds(replace(found, gathered=0.0, exchanged=0.0, copied=0.0, calls=0.0), world)
    beyond = measured.seconds - calm
    waiting = found.calls * latency * math.ceil(math.log2(world))
    if beyond <= waiting:  # the latencies are hidden as well
        latency = waiting = 0.0
    wire = found.wire(world)
    link = wire / (beyond - waiting) if beyond > 0 and wire > 0 else None
    told = "link not seen" if link is None else f"link {link / 1e9:.3g} GB/s"
    return replace(pace, latency=latency, link=link, told=f"{pace.told}, {told}")


def crosses(mode: str, world: int) -> bool:
    """Whether weights or sums go between hosts of `HOST` GPUs."""
    group = mode.partition("/")[2]
    return world > HOST and not (group and int(group) <= HOST)


def _base(mode: str) -> str:
    """The mode whose figures at P = 2 a mesh is calibrated by."""
    name, _, group = mode.partition("/")
    return "tp" if group and name == "tp+rows" else name
