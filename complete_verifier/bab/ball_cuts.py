"""Linear programs over an Lp ball by outer cuts: each leaves out the last optimum and no point of the ball."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

MOST_CUTS = 100
# Relative to the radius: a cut lies so far outside the ball, for rounding, and a candidate so far inside, where its
# float32 neighbours are too.
_OUTSIDE, _INSIDE = 1e-9, 1e-5


@dataclass(frozen=True, slots=True)
class BallCuts:
    """The ball ``||x - center||_p <= radius`` (p >= 1, finite)."""

    center: Vector
    radius: float
    p: float

    def cut(self, x: Vector) -> tuple[Vector, float] | None:
        """``(g, limit)`` with ``g . y <= limit`` for every y of the ball, but not for x; None if x lies in it.

        By Hoelder: with the dual vector g of x - center, ``g . (y - center) <= ||g||_q radius``.
        """
        gap = x - self.center
        length = float(np.linalg.norm(gap, self.p))
        if length <= self.radius * (1 + _OUTSIDE) or length == 0:
            return None
        g = np.sign(gap) * (np.abs(gap) / length) ** (self.p - 1) if self.p > 1 else np.sign(gap)
        q = np.inf if self.p == 1 else self.p / (self.p - 1)
        reach = float(np.linalg.norm(g, q)) * self.radius * (1 + _OUTSIDE)
        return g, float(g @ self.center) + reach + _OUTSIDE * (1 + abs(float(g @ self.center)))

    def inside(self, x: Vector) -> Vector:
        """The point, drawn towards the centre until it is in the ball."""
        gap = x - self.center
        length = float(np.linalg.norm(gap, self.p))
        allowed = self.radius * (1 - _INSIDE)
        drawn: Vector = x if length <= allowed else self.center + gap * (allowed / length)
        return drawn
