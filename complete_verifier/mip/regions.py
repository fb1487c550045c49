"""The programs of a problem's regions: boxes in float64, a little wider than what earlier stages found."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.bounds.intermediate import Boxes
from auto_LiRPA.values import Box
from complete_verifier.mip.encode import Encoding, Sides, encode
from complete_verifier.mip.linear_maps import LinearMaps
from complete_verifier.mip.settings import Formulation
from complete_verifier.problem import Problem

# Boxes come from passes in the run's precision, whose sums are not rounded outwards. As big-M constants they are
# widened by so many units in the last place of the largest number in the node's box.
_WIDENED_ULPS = 16.0
# HiGHS keeps rows and integers to 1e-6 and reduced costs to 1e-7. A bound counts only less this share of the size of
# the numbers that it is made of (and of 1).
_SOLVER_TOLERANCE = 1e-6


def margin(size: float) -> float:
    """What is taken off a bound that rests on the solver's word, for a function of values up to ``size``."""
    return _SOLVER_TOLERANCE * (1 + size)


class RegionPrograms:
    """Encodes a problem over its regions; the matrices of linear maps are made once."""

    def __init__(self, problem: Problem, formulation: Formulation) -> None:
        self.problem = problem
        self._formulation: Formulation = formulation
        self._maps = LinearMaps(problem.graph, problem.context.check_time)

    def encoded(
        self, region: int, boxes: Boxes, target: int, cut: frozenset[int] = frozenset()
    ) -> tuple[Encoding, Sides]:
        """The program of one region up to node ``target``, and interval bounds of that node's neurons in it.

        Raises:
            Unsuitable, OutOfTime.
        """
        box = self.problem.region
        assert isinstance(box, Box)
        inputs = Sides(_flat(box.lower[region]), _flat(box.upper[region]))
        sides = {i: _widened(b.lower[region], b.upper[region]) for i, b in boxes.items()}
        encoding = encode(self._maps, inputs, sides, target, self._formulation, cut)
        return encoding, _reach(encoding)


def finite(boxes: Boxes, region: int) -> bool:
    """Whether every bound of a region is a number: big-M rows need one."""
    return all(bool(torch.isfinite(side[region]).all()) for b in boxes.values() for side in (b.lower, b.upper))


def _widened(lower: Tensor, upper: Tensor) -> Sides:
    low, high = _flat(lower), _flat(upper)
    size = max(float(np.abs(low).max(initial=0.0)), float(np.abs(high).max(initial=0.0)))
    by = _WIDENED_ULPS * torch.finfo(lower.dtype).eps * size
    return Sides(low - by, high + by)


def _reach(encoding: Encoding) -> Sides:
    """Interval bounds of the target's neurons from the bounds of the program's columns."""
    matrix, program = encoding.target.matrix, encoding.program
    width = matrix.shape[1]
    center = (program.lower + program.upper)[:width] / 2
    radius = (program.upper - program.lower)[:width] / 2
    middle, spread = matrix @ center + encoding.target.offset, abs(matrix) @ radius
    return Sides(middle - spread, middle + spread)


def _flat(side: Tensor) -> np.ndarray:
    return side.detach().flatten().cpu().double().numpy()

