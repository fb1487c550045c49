"""Input regions: a box, or an Lp ball; how a linear function is bounded over each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from auto_LiRPA.values.interval import Interval


class Region(Protocol):
    """A set of inputs, one per batch element, over which linear functions have a known least value.

    Shape letters: B batch elements, T rows, n input neurons (flattened).
    """

    @property
    def is_box(self) -> bool:
        """True if the region is the product of its own per-neuron intervals."""
        ...

    def interval(self) -> Interval:
        """The smallest box around the region, ``[B, *shape]``."""
        ...

    def center(self) -> Tensor:
        """A point of the region, ``[B, *shape]``."""
        ...

    def minimum(self, coef: Tensor) -> Tensor:
        """Least value of ``coef . x``: coef ``[B or 1, T, *shape]`` -> ``[B, T]``."""
        ...

    def minimizer(self, coef: Tensor) -> Tensor:
        """A point where that least value is reached: ``[B, T, *shape]``."""
        ...

    def pick(self, index: Tensor) -> Region:
        """The regions of some batch elements."""
        ...


@dataclass(frozen=True, slots=True)
class Box:
    """``lower <= x <= upper`` per element (an L_inf ball is one)."""

    lower: Tensor
    upper: Tensor

    @property
    def is_box(self) -> bool:
        return True

    def interval(self) -> Interval:
        return Interval(self.lower, self.upper)

    def center(self) -> Tensor:
        return (self.lower + self.upper) / 2

    def minimum(self, coef: Tensor) -> Tensor:
        # centre and half-width need two products and no copy of coef's positive and negative parts
        flat = coef.flatten(2)
        center = ((self.lower + self.upper) / 2).flatten(1).unsqueeze(-1)
        radius = ((self.upper - self.lower) / 2).flatten(1).unsqueeze(-1)
        return (_rows_dot(flat, center) - _rows_dot(flat.abs(), radius)).squeeze(-1)

    def minimizer(self, coef: Tensor) -> Tensor:
        return torch.where(coef >= 0, self.lower.unsqueeze(1), self.upper.unsqueeze(1))

    def pick(self, index: Tensor) -> Box:
        return Box(self.lower[index], self.upper[index])


@dataclass(frozen=True, slots=True)
class LpBall:
    """``||x - x0||_p <= eps`` with one radius per batch element (p >= 1, p < inf)."""

    x0: Tensor
    eps: Tensor
    p: float

    @property
    def is_box(self) -> bool:
        return False

    def _eps(self, ndim: int) -> Tensor:
        return self.eps.reshape(-1, *([1] * (ndim - 1)))

    def interval(self) -> Interval:
        eps = self._eps(self.x0.ndim)
        return Interval(self.x0 - eps, self.x0 + eps)

    def center(self) -> Tensor:
        return self.x0

    def minimum(self, coef: Tensor) -> Tensor:
        """Hoelder: ``coef.x0 - eps * ||coef||_q`` with 1/p + 1/q = 1."""
        flat = coef.flatten(2)
        q = math.inf if self.p == 1 else 1 / (1 - 1 / self.p)
        norm = _norm(flat, q).squeeze(-1)
        return _rows_dot(flat, self.x0.flatten(1).unsqueeze(-1)).squeeze(-1) - norm * self.eps.reshape(-1, 1)

    def minimizer(self, coef: Tensor) -> Tensor:
        flat = coef.flatten(2)
        eps = self.eps.reshape(-1, 1, 1)
        if self.p == 1:
            step = torch.zeros_like(flat)
            best = flat.abs().argmax(-1, keepdim=True)
            step.scatter_(-1, best, flat.gather(-1, best).sign())
        else:
            q = 1 / (1 - 1 / self.p)
            norm = _norm(flat, q).clamp_min(torch.finfo(flat.dtype).tiny)
            step = flat.sign() * (flat.abs() / norm) ** (q - 1)
        return (self.x0.flatten(1).unsqueeze(1) - eps * step).reshape(-1, flat.shape[1], *self.x0.shape[1:])

    def pick(self, index: Tensor) -> LpBall:
        eps = self.eps if self.eps.numel() == 1 else self.eps[index]
        return LpBall(self.x0[index], eps, self.p)


def _norm(flat: Tensor, q: float) -> Tensor:
    """The q-norm along the last axis, which stays with length 1.

    Entries are divided by the largest first: for p near 1 the exponent q is large, and powers of entries below 1 would
    vanish (a norm of 0 is no bound), those of others overflow. The norm is homogeneous, so gradients are its own.
    """
    largest = flat.detach().abs().amax(-1, keepdim=True)
    size = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return torch.linalg.vector_norm(flat / size, ord=q, dim=-1, keepdim=True) * size


def _rows_dot(coef: Tensor, vector: Tensor) -> Tensor:
    """``[B or 1, T, n] @ [B, n, 1] -> [B, T, 1]`` as one matrix product where the rows are shared by the batch."""
    if coef.shape[0] == 1 and vector.shape[0] > 1:
        return (coef[0] @ vector[:, :, 0].T).T.unsqueeze(-1)
    # one vector for all: a single matrix product instead of one per batch element
    return coef @ vector[0] if vector.shape[0] == 1 else coef @ vector
