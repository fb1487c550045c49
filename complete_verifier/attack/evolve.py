"""Random local search for networks of few inputs: every elite point tries mutations of itself and keeps the best.

Shape letters: E elites, M mutations of each, P problems, K rows, ``*in`` the input's per-sample shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from complete_verifier.attack.objective import hinge_sum
from complete_verifier.attack.problems import project
from complete_verifier.attack.scene import Scene

_MUTATIONS = 8
_ROUNDS = 60
# Half-width of a mutation relative to the box's; it grows where it helps and shrinks where it does not.
_FIRST_RADIUS, _LEAST_RADIUS, _MOST_RADIUS = 0.25, 1e-5, 0.5
_GROW, _SHRINK = 1.3, 0.75
# Mutations are smaller than the radius by up to e^3, so that one round tries several scales.
_SCALES = 3.0


@dataclass(frozen=True, slots=True)
class Elite:
    """The best points of each problem: ``x`` ``[E, P, *in]``, their worst rows and row sums ``[E, P]``."""

    x: Tensor
    worst: Tensor
    total: Tensor

    @classmethod
    def choose(cls, x: Tensor, box: Tensor, values: Tensor, worst: Tensor, count: int) -> Elite:
        """The best of ``x`` ``[N, G, *in]``; problem p lies in box ``box[p]`` and has ``values[:, p]`` ``[N, P, K]``.

        Half of them by the worst row, half by the sum of the rows: the two get stuck at different places.
        """
        total = hinge_sum(values)
        by_worst = worst.topk(count - count // 2, dim=0, largest=False).indices
        by_total = total.topk(count // 2, dim=0, largest=False).indices
        index = torch.cat([by_worst, by_total])
        return cls(x[index, box], worst.gather(0, index), total.gather(0, index))

    def best(self, count: int) -> Tensor:
        """The ``count`` points (or all) with the best worst row, ``[count, P, *in]``."""
        index = self.worst.topk(min(count, len(self.worst)), dim=0, largest=False).indices
        return self.x[index, torch.arange(self.x.shape[1], device=self.x.device)]

    def by_worst(self) -> Tensor:
        """Which elites ``[E, 1]`` are judged by their worst row; the others are by the sum."""
        half = len(self.x) - len(self.x) // 2
        return (torch.arange(len(self.x), device=self.x.device) < half).unsqueeze(1)


def evolve(scene: Scene, index: Tensor, elite: Elite, random: torch.Generator, share: float) -> Elite:
    """Elites of the problems ``index`` ``[P]`` after some rounds, within this share of the time left."""
    width = max(1, scene.most_points // (len(elite.x) * _MUTATIONS))
    parts, left = [], scene.pace.left()
    for start in range(0, len(index), width):
        here = slice(start, start + width)
        part = Elite(elite.x[:, here], elite.worst[:, here], elite.total[:, here])
        parts.append(_evolve_part(scene, index[here], part, random, (1 - share) * left))
    return Elite(*(torch.cat([getattr(p, name) for p in parts], 1) for name in ("x", "worst", "total")))


def _evolve_part(scene: Scene, index: Tensor, elite: Elite, random: torch.Generator, until: float) -> Elite:
    """Rounds for problems that fit memory together; ends when that much time is left."""
    problems = scene.problems.select(index)
    lower, upper = scene.problems.lower[problems.box], scene.problems.upper[problems.box]
    radius = torch.full_like(elite.worst, _FIRST_RADIUS)
    points = elite.worst.numel() * _MUTATIONS
    for step in range(min(_ROUNDS, scene.settings.steps)):
        if scene.must_stop(step, points) or scene.pace.left() < until:
            break
        with torch.no_grad():
            scaled = radius.reshape(*radius.shape, *(1 for _ in lower.shape[1:])) * (upper - lower)
            mutants = project(elite.x + scaled * _mutations(elite.x, random), lower, upper)
            values = problems.values(scene.outputs(mutants.flatten(0, 1))) + scene.settings.tolerance
            worst, total = problems.worst(values), hinge_sum(values)
            scene.best.observe(index, mutants.flatten(0, 1), worst)
            elite, better = _select(elite, mutants, worst, total)
        radius = torch.where(better, radius * _GROW, radius * _SHRINK).clamp(_LEAST_RADIUS, _MOST_RADIUS)
    return elite


def _mutations(x: Tensor, random: torch.Generator) -> Tensor:
    """``[M, E, P, *in]`` in [-1, 1]: of several scales, each along a random subset of the inputs."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random, dtype=x.dtype, device=x.device)

    each = (_MUTATIONS, *x.shape[:2], *(1 for _ in x.shape[2:]))
    chosen = draw(_MUTATIONS, *x.shape) < draw(*each) + 1 / max(1, x[0, 0].numel())
    return (2 * draw(_MUTATIONS, *x.shape) - 1) * torch.exp(-_SCALES * draw(*each)) * chosen


def _select(elite: Elite, mutants: Tensor, worst: Tensor, total: Tensor) -> tuple[Elite, Tensor]:
    """Each elite or the best of its mutants, whichever is better, and where a mutant was (``[E, P]``)."""
    shape = mutants.shape[:3]
    worst, total = worst.reshape(shape), total.reshape(shape)
    by_worst = elite.by_worst()
    least, which = torch.where(by_worst, worst, total).min(0)
    better = least < torch.where(by_worst, elite.worst, elite.total)
    pick = which.unsqueeze(0)
    mask = better.reshape(*better.shape, *(1 for _ in mutants.shape[3:]))
    at = torch.meshgrid(*(torch.arange(n, device=which.device) for n in which.shape), indexing="ij")
    return Elite(
        torch.where(mask, mutants[which, at[0], at[1]], elite.x),
        torch.where(better, worst.gather(0, pick)[0], elite.worst),
        torch.where(better, total.gather(0, pick)[0], elite.total),
    ), better
