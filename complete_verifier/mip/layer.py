"""The neurons of one layer over the program of what lies below them: both sides of each, nearest to a sign first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from auto_LiRPA.values import Interval
from complete_verifier.mip.encode import Encoding
from complete_verifier.mip.messages import Answer, Ending, Task
from complete_verifier.mip.pool import SolverPool
from complete_verifier.mip.program import Floats
from complete_verifier.mip.regions import margin
from complete_verifier.mip.settings import MipSettings

# Bounds of neurons need not be exact: a solve ends within this share of the optimum.
_GAP = 1e-3


@dataclass(slots=True)
class _Ends:
    """What is known of the layer's undecided neurons."""

    lower: Floats
    upper: Floats

    def settled(self, k: int) -> bool:
        return bool(self.lower[k] >= 0 or self.upper[k] <= 0)


def solve_layer(
    pool: SolverPool,
    encoding: Encoding,
    box: Interval,
    index: Sequence[int],
    settings: MipSettings,
    hinge: bool,
    until: float,
) -> Interval:
    """``box`` ``[1, *shape]`` with the neurons ``index`` tightened, never looser, rounded outwards to its dtype.

    Args:
        encoding: with the layer as its target.
        hinge: only the sign matters before a neuron is linear: a solve may end with it, and the other side is left.
        until: a monotonic time after which no solve starts.
    """
    lower, upper = (side.flatten().cpu().double().numpy().copy() for side in (box.lower, box.upper))
    chosen = np.asarray(index, dtype=np.int64)
    ends = _Ends(lower[chosen].copy(), upper[chosen].copy())
    seconds = settings.neuron_seconds
    exact = settings.formulation == "mip"
    tasks = [
        _task(encoding, ends, k, int(chosen[k]), sign, exact, seconds, hinge) for k, sign in _order(ends)
    ]

    def wanted(task: Task) -> bool:
        return time.monotonic() < until and not (hinge and ends.settled(task.number // 2))

    for answer in pool.solve(encoding.program, tasks, wanted):
        _take(ends, answer, float(encoding.target.offset[chosen[answer.number // 2]]), exact, hinge)
    crossed = ends.lower > ends.upper
    lower[chosen] = np.where(crossed, lower[chosen], ends.lower)
    upper[chosen] = np.where(crossed, upper[chosen], ends.upper)
    return Interval(_outwards(lower, box.lower, -np.inf), _outwards(upper, box.upper, np.inf)).intersect(box)


def _order(ends: _Ends) -> list[tuple[int, int]]:
    """(neuron, +1 for its lower or -1 for its upper side): all sides nearer to zero first, nearest of all first."""
    near = np.minimum(-ends.lower, ends.upper) / (ends.upper - ends.lower)
    order = np.argsort(near, kind="stable").tolist()
    first = [(k, 1 if -ends.lower[k] < ends.upper[k] else -1) for k in order]
    return first + [(k, -sign) for k, sign in first]


def _task(
    encoding: Encoding, ends: _Ends, k: int, neuron: int, sign: int, exact: bool, seconds: float, hinge: bool
) -> Task:
    """Minimise ``sign * z``; with a hinge only where it is not above the margin, so that a sure sign is infeasible."""
    program, width = encoding.program, len(encoding.program.lower)
    cost = np.zeros(width)
    row = encoding.target.matrix[[neuron]].toarray()[0]
    cost[: len(row)] = sign * row
    clamped = hinge and exact and bool(program.integer.any())
    limit = _margin(ends, k) - sign * float(encoding.target.offset[neuron])
    return Task(
        number=2 * k + (sign < 0),
        cost=cost,
        rows=cost[None] if clamped else np.zeros((0, width)),
        limits=np.array([limit]) if clamped else np.zeros(0),
        lower=program.lower,
        upper=program.upper,
        exact=exact,
        seconds=seconds,
        gap=_GAP,
    )


def _margin(ends: _Ends, k: int) -> float:
    return margin(max(abs(float(ends.lower[k])), abs(float(ends.upper[k]))))


def _take(ends: _Ends, answer: Answer, offset: float, exact: bool, hinge: bool) -> None:
    """Use one answer. A bound that rests on the solver's word counts less the margin."""
    k, sign = answer.number // 2, -1 if answer.number % 2 else 1
    if answer.ending is Ending.INFEASIBLE:
        if not hinge:
            return  # the program holds every input's values, so this cannot be
        bound = 0.0
    else:
        bound = answer.bound + sign * offset - (_margin(ends, k) if exact else 0.0)
    if sign > 0:
        ends.lower[k] = max(ends.lower[k], bound)
    else:
        ends.upper[k] = min(ends.upper[k], -bound)


def _outwards(values: Floats, like: torch.Tensor, towards: float) -> torch.Tensor:
    """Float64 values as the nearest numbers of ``like``'s dtype that are not inwards of them."""
    exact = torch.from_numpy(values)
    near = exact.to(like.dtype)
    inward = near.double() < exact if towards > 0 else near.double() > exact
    moved = torch.where(inward, torch.nextafter(near, torch.full_like(near, towards)), near)
    return moved.reshape(like.shape).to(like.device)
