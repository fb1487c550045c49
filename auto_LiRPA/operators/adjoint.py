"""Linear steps under autograd that keep handles of weights, never the weights themselves (DESIGN 2.3).

Autograd would save every block that a coefficient is multiplied by, fetched ones too. Here the backward of a linear map
is its adjoint, which fetches the blocks again. So gradients have the same bits wherever the weights live.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LinearMap = Callable[[Tensor], Tensor]


def linear_step(x: Tensor, there: LinearMap, back: LinearMap) -> Tensor:
    """``there(x)`` for a linear map whose adjoint is ``back``; differentiable by x any number of times."""
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _Step.apply(x, there, back)
        return result
    return there(x)


class _Step(torch.autograd.Function):
    """Saves the two functions and nothing else."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, there: LinearMap, back: LinearMap) -> Tensor:
        return there(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.there, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return linear_step(gradient, ctx.back, ctx.there), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *rest: Any) -> Tensor:
        return linear_step(tangent, ctx.there, ctx.back)
