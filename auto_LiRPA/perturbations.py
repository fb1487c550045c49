"""What an input may be changed into: Lp balls and boxes around it, as regions of the bound engine."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from auto_LiRPA.errors import SpecError, UserError
from auto_LiRPA.values import Box, LpBall, Region

logger = logging.getLogger(__name__)


class Perturbation:
    """Base of all perturbations. A subclass only has to say which region lies around ``x``."""

    def region(self, x: Tensor) -> Region:
        """The inputs that bounds must hold for, one set per batch element of ``x`` ``[B, *shape]``."""
        raise NotImplementedError(type(self).__name__)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The same perturbation with every tensor moved as ``Tensor.to`` would move it."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(*args, **kwargs))
        return moved

    def clone(self) -> Self:
        """The same perturbation with its tensors copied."""
        cloned = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(cloned, name, value.clone())
        return cloned


class PerturbationLpNorm(Perturbation):
    """``||x' - x||_norm <= eps``, or for the inf norm any box ``x_L <= x' <= x_U``.

    Args:
        eps: a number; or a tensor: one radius per sample (``[B]`` or ``[B, 1, ...]``), for the inf norm also one per
            element (the shape of x, or what broadcasts to it).
        norm: any p >= 1, or inf.
        x_L, x_U: the box's corners for the inf norm (each wins over eps). For other norms only eps counts.
        eps_min: accepted for compatibility, not used.
        constraints: not supported yet.
        rearrange_constraints, no_return_inf, timer: accepted; they only matter with constraints.
    """

    def __init__(
        self,
        eps: float | Tensor = 0.0,
        norm: float = math.inf,
        x_L: Tensor | None = None,
        x_U: Tensor | None = None,
        eps_min: float | Tensor = 0.0,
        constraints: object = None,
        rearrange_constraints: bool = False,
        no_return_inf: bool = False,
        timer: object = None,
    ) -> None:
        self.norm = float(norm)
        if not self.norm >= 1:
            raise UserError(f"PerturbationLpNorm: norm = {norm}: expected a number of 1 or more, or inf")
        if constraints is not None:
            raise UserError("PerturbationLpNorm: constraints: not supported yet, leave it out")
        self.eps = eps
        self.eps_min = eps_min
        self.x_L = x_L
        self.x_U = x_U
        if self.norm != math.inf and not (x_L is None and x_U is None):
            logger.warning("PerturbationLpNorm: norm %g takes eps alone; x_L and x_U do not clip the ball", self.norm)

    def set_eps(self, eps: float | Tensor) -> None:
        """Another radius from now on (training schedules)."""
        self.eps = eps

    def region(self, x: Tensor) -> Region:
        if self.norm != math.inf:
            return self._ball(x)
        needs_eps = self.x_L is None or self.x_U is None
        eps = self._per_element(x) if needs_eps else x.new_zeros(())
        lower = x - eps if self.x_L is None else _corner("x_L", self.x_L, x)
        upper = x + eps if self.x_U is None else _corner("x_U", self.x_U, x)
        # one question for all of it: NaN and inf fail the comparison too
        if not bool(((lower <= upper) & torch.isfinite(upper - lower)).all()):
            raise SpecError("PerturbationLpNorm: some x_L > x_U, or a bound is NaN or infinite: nothing can be bounded")
        return Box(lower, upper)

    def _ball(self, x: Tensor) -> LpBall:
        eps = self._radius(x)
        if eps.numel() not in (1, x.shape[0]):
            raise SpecError(
                f"PerturbationLpNorm: eps of shape {tuple(eps.shape)}: norm {self.norm:g} takes one number, or one per"
                f" sample ({x.shape[0]})"
            )
        if not bool(torch.isfinite(x).all()):
            raise SpecError("PerturbationLpNorm: the input holds NaN or infinite values")
        return LpBall(x, eps.reshape(-1).expand(x.shape[0]), self.norm)

    def _per_element(self, x: Tensor) -> Tensor:
        """eps in a shape that broadcasts to x's as it was meant: a plain list is one radius per sample."""
        eps = self._radius(x)
        if eps.numel() == 1:
            return eps.reshape(())
        if eps.ndim == 1 and x.ndim > 1:
            per_sample, per_feature = eps.shape[0] == x.shape[0], eps.shape[0] == x.shape[-1]
            if per_sample and per_feature:
                raise SpecError(
                    f"PerturbationLpNorm: eps of shape ({eps.shape[0]},) may mean one per sample or one per feature:"
                    f" give it {x.ndim} axes"
                )
            if per_sample:
                return eps.reshape(-1, *([1] * (x.ndim - 1)))
        if not _broadcasts(eps.shape, x.shape):
            raise SpecError(f"PerturbationLpNorm: eps of shape {tuple(eps.shape)} does not fit x {tuple(x.shape)}")
        return eps

    def _radius(self, x: Tensor) -> Tensor:
        """eps as a tensor beside x, checked to be a radius."""
        eps = torch.as_tensor(self.eps, dtype=x.dtype, device=x.device)
        if not bool(((eps >= 0) & torch.isfinite(eps)).all()):
            raise SpecError("PerturbationLpNorm: eps must be 0 or more, and finite")
        return eps

    def __repr__(self) -> str:
        corners = "" if self.x_L is None and self.x_U is None else ", with x_L and x_U"
        return f"PerturbationLpNorm(norm={self.norm:g}, eps={self.eps}{corners})"


def _corner(name: str, value: Tensor, x: Tensor) -> Tensor:
    if not _broadcasts(value.shape, x.shape):
        raise SpecError(f"PerturbationLpNorm: {name} of shape {tuple(value.shape)} does not fit x {tuple(x.shape)}")
    if value.dtype != x.dtype or value.device != x.device:
        raise SpecError(
            f"PerturbationLpNorm: {name} is {value.dtype} on {value.device}, x is {x.dtype} on {x.device}:"
            " make them alike"
        )
    return value.expand(x.shape)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    tail = to[len(to) - len(shape) :] if len(shape) <= len(to) else ()
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape, tail, strict=True))


class _NotYet(Perturbation):
    """A perturbation that can be imported and not used."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._refuse()

    @classmethod
    def _refuse(cls) -> NoReturn:
        raise UserError(f"{cls.__name__}: not supported yet; use PerturbationLpNorm")


class PerturbationL0Norm(_NotYet):
    """A number of changed inputs. Not supported yet."""


class PerturbationLinear(_NotYet):
    """Linear bounds of the input in other variables. Not supported yet."""


class PerturbationSynonym(_NotYet):
    """Word substitutions. Not supported yet."""
