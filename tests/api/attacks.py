"""Points of a region that lie where bounds break: corners, boundary, and where a gradient search ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Around:
    """An Lp ball around ``x`` ``[B, *shape]`` with one radius per sample, or a box (p = inf, ``low``, ``high``)."""

    x: Tensor
    eps: Tensor
    p: float
    low: Tensor
    high: Tensor

    @classmethod
    def ball(cls, x: Tensor, eps: Tensor, p: float) -> Around:
        wide = eps.reshape(-1, *([1] * (x.ndim - 1)))
        return cls(x, eps, p, x - wide, x + wide)

    def samples(self, count: int, generator: torch.Generator) -> Tensor:
        """``[count, B, *shape]``: corners and boundary points first, then anywhere inside."""
        shape = (count, *self.x.shape)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.x)
        if self.p == float("inf"):
            share = torch.rand(shape, generator=generator, dtype=torch.float64).to(self.x)
            share[: count // 2] = (noise[: count // 2] > 0).to(self.x)
            return self.low + share * (self.high - self.low)
        if self.p == 1:
            noise[: count // 4] = _one_coordinate(noise[: count // 4])
        length = torch.linalg.vector_norm(noise.flatten(2), ord=self.p, dim=-1)
        radius = torch.rand(length.shape, generator=generator, dtype=torch.float64).to(self.x)
        radius[: count // 2] = 1.0
        return self.x + noise * _wide(self.eps * radius / length, noise)

    def lowest(self, gradient: Tensor) -> Tensor:
        """Where the linear function ``gradient`` ``[S, B, *shape]`` is least in the region."""
        if self.p == float("inf"):
            return torch.where(gradient >= 0, self.low, self.high)
        if self.p == 1:
            return self.x - _one_coordinate(gradient) * _wide(self.eps.expand(gradient.shape[:2]), gradient)
        q = 1 / (1 - 1 / self.p)
        power = gradient.sign() * gradient.abs() ** (q - 1)
        length = torch.linalg.vector_norm(power.flatten(2), ord=self.p, dim=-1).clamp_min(1e-30)
        return self.x - power * _wide(self.eps / length, gradient)

    def search(self, network: Network, rows: Tensor, start: Tensor, steps: int = 6) -> Tensor:
        """Least values ``[S, B]`` of ``rows . network(x)`` on a way from ``start`` to one linear minimum after another.

        rows: ``[B, S, n_out]``.
        """
        best = torch.full((rows.shape[1], self.x.shape[0]), float("inf")).to(self.x)
        at = start.expand(rows.shape[1], *self.x.shape)
        for step in range(steps):
            at = at.detach().requires_grad_()
            out = network(at.flatten(0, 1)).reshape(rows.shape[1], self.x.shape[0], -1)
            value = (rows.transpose(0, 1) * out).sum(-1)
            best = torch.minimum(best, value.detach())
            (gradient,) = torch.autograd.grad(value.sum(), at)
            target = self.lowest(gradient)
            at = target if step % 2 == 0 else at.detach() + (target - at.detach()) * 0.5
        return best


def _one_coordinate(direction: Tensor) -> Tensor:
    flat = direction.flatten(2)
    index = flat.abs().argmax(-1, keepdim=True)
    return torch.zeros_like(flat).scatter(-1, index, flat.gather(-1, index).sign()).reshape(direction.shape)


def _wide(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.reshape(*per_sample.shape, *([1] * (like.ndim - per_sample.ndim)))
