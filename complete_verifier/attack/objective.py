"""What the attack descends, and the best points found so far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from complete_verifier.attack.problems import Problems

# A row that is violated by this much pulls no longer: the others of its clause need the steps.
VIOLATED_ENOUGH = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """The best point found for one clause. ``x`` ``[n_in]`` float32 lies in the box of ``region``, rounded inwards."""

    x: NDArray[np.float32]
    problem: int
    region: int
    clause: int
    worst_row: float  # mat @ y - rhs + tolerance of its least violated row, by the attack's own arithmetic

    @property
    def violating(self) -> bool:
        """Whether all rows are violated, as far as the attack's arithmetic knows."""
        return self.worst_row <= 0


def hinge(values: Tensor) -> Tensor:
    """Sum over problems and rows of ``max(value, -1e-5)`` (interface 7.10): ``[..., P, K]`` -> scalar, to be descended.

    Padding (-inf) adds a constant.
    """
    return values.clamp_min(-VIOLATED_ENOUGH).sum()


def guiding(y: Tensor, clean: Tensor) -> Tensor:
    """GAMA's term, to be ascended: squared distance between the softmax of y ``[..., P, O]`` and of ``clean`` ``[P, O]``.

    Source: Sriramanan et al., Guided Adversarial Attack for Evaluating and Enhancing Adversarial Defenses (2020).
    """
    return (clean.softmax(-1) - y.softmax(-1)).square().sum()


class Best:
    """For each problem the point whose worst row is violated most; kept on the device, without synchronisation."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.x = problems.lower[problems.box]
        self.worst = problems.rhs.new_full((problems.count,), torch.inf)
        # A candidate has to reach this; lowered where one was rejected, so that it is not proposed for ever.
        self.wanted = problems.rhs.new_zeros(problems.count)

    def observe(self, index: Tensor | slice, x: Tensor, worst: Tensor) -> None:
        """Take in points ``x`` ``[R, P', *in]`` of the problems ``index`` ``[P']``, with their worst rows ``[R, P']``."""
        least, start = worst.min(0)
        better = least < self.worst[index]
        chosen = x[start, torch.arange(x.shape[1], device=x.device)]
        mask = better.reshape(-1, *(1 for _ in range(chosen.ndim - 1)))
        self.x[index] = torch.where(mask, chosen, self.x[index])
        self.worst[index] = torch.minimum(least, self.worst[index])

    def reached(self) -> bool:
        """Whether some problem has a candidate that all rows call violated. Synchronises."""
        return bool((self.worst <= self.wanted).any())

    def candidate(self, only_reached: bool = False) -> Candidate:
        """The candidate of the problem nearest to (or deepest in) a violation. Synchronises."""
        worst = self.worst.masked_fill(self.worst > self.wanted, torch.inf) if only_reached else self.worst
        problem = int(worst.argmin())
        x = self.x[problem].detach().flatten().float().cpu().numpy()
        region, clause = self.problems.region[problem], self.problems.clause[problem]
        return Candidate(x, problem, region, clause, float(self.worst[problem]))

    def reject(self, problem: int) -> None:
        """The candidate of this problem is none: from now on only a clearly deeper one counts."""
        depth = self.worst[problem].clamp_max(0).abs()
        self.wanted[problem] = -(2 * depth + torch.finfo(depth.dtype).eps)
