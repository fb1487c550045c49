"""What the attack descends, and the best points found so far."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from complete_verifier.attack.problems import Problems
from complete_verifier.attack.team import Team

logger = logging.getLogger(__name__)

# A row that is violated by this much pulls no longer: the others of its clause need the steps.
_VIOLATED_ENOUGH = 1e-5
# After so many candidates that did not stand up to confirmation the attack gives up.
_MAX_REJECTED = 20


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


Accept = Callable[[Candidate], bool]  # called by all ranks with the same candidate; they have to agree


def hinge_sum(values: Tensor) -> Tensor:
    """Sum over rows of ``max(value, -1e-5)``: ``[..., P, K] -> [..., P]``, to be descended. Padding adds a constant.

    Source: interface 7.10 (its negative is the loss that is ascended).
    """
    return values.clamp_min(-_VIOLATED_ENOUGH).sum(-1)


def guiding(y: Tensor, clean: Tensor) -> Tensor:
    """GAMA's term, to be ascended: how far the softmax of y ``[..., P, O]`` is from that of ``clean`` ``[P, O]``.

    Source: Sriramanan et al., Guided Adversarial Attack for Evaluating and Enhancing Adversarial Defenses (2020).
    """
    return (clean.softmax(-1) - y.softmax(-1)).square().sum()


class Best:
    """For each problem the point whose worst row is violated most; kept on the device, without synchronisation.

    Of this rank's points; what is offered, accepted and rejected is the same on all ranks of the team.
    """

    def __init__(self, problems: Problems, accept: Accept, team: Team) -> None:
        self.worst = problems.rhs.new_full((problems.count,), torch.inf)
        self.accepted: Candidate | None = None
        self._problems = problems
        self._accept = accept
        self._group = team.group
        self._x = problems.lower[problems.box]
        # A candidate has to reach this; lowered where one was rejected, so that it is not offered for ever.
        self._wanted = torch.zeros_like(self.worst)
        self._rejected = 0

    def observe(self, index: Tensor | slice, x: Tensor, worst: Tensor) -> None:
        """Take in points ``x`` ``[R, P', *in]`` of the problems ``index`` ``[P']`` and their worst rows ``[R, P']``."""
        least, start = worst.min(0)
        better = least < self.worst[index]
        chosen = x[start, torch.arange(x.shape[1], device=x.device)]
        mask = better.reshape(-1, *(1 for _ in range(chosen.ndim - 1)))
        self._x[index] = torch.where(mask, chosen, self._x[index])
        self.worst[index] = torch.minimum(least, self.worst[index])

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to search for."""
        return self.accepted is not None or self._rejected >= _MAX_REJECTED

    def offer(self) -> None:
        """Offer the candidates that have all rows violated, the deepest first, until one is accepted. Synchronises."""
        while not self.finished:
            waiting = self.worst.masked_fill(self.worst > self._wanted, torch.inf)
            source, least = self._deepest(waiting)
            if least == torch.inf:
                return
            candidate = self._of(source, waiting)
            if self._accept(candidate):
                self.accepted = candidate
                return
            logger.debug("a candidate with worst row %.3g was not confirmed", candidate.worst_row)
            self._rejected += 1
            if source == self._group.rank:
                depth = self.worst[candidate.problem].clamp_max(0).abs()
                self._wanted[candidate.problem] = -(2 * depth + torch.finfo(depth.dtype).eps)

    def nearest(self) -> Candidate:
        """The point nearest to (or deepest in) a violation. Synchronises."""
        return self._of(self._deepest(self.worst)[0], self.worst)

    def by_need(self) -> Tensor:
        """The problems in the order of their best points' worst rows, over all ranks: nearest to a violation first."""
        return self._group.least(self.worst).argsort(stable=True)

    def _deepest(self, worst: Tensor) -> tuple[int, float]:
        """The rank that has the least of all ranks' ``worst`` ``[P]``, and that value."""
        found = [row[0] for row in self._group.numbers([float(worst.min())])]
        return found.index(min(found)), min(found)

    def _of(self, source: int, worst: Tensor) -> Candidate:
        """Rank ``source``'s candidate with the least of its ``worst``."""
        mine = self._candidate(worst) if source == self._group.rank else None
        found = self._group.same_object(mine, source)
        assert found is not None
        return found

    def _candidate(self, worst: Tensor) -> Candidate:
        problem = int(worst.argmin())
        x = self._x[problem].detach().flatten().float().cpu().numpy()
        region, clause = self._problems.region[problem], self._problems.clause[problem]
        return Candidate(x, problem, region, clause, float(self.worst[problem]))
