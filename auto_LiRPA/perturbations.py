"""What an input may be changed into: Lp balls and boxes around it, as regions of the bound engine."""

from __future__ import annotations

import logging
import math
from typing import NoReturn

import torch
from torch import Tensor

from auto_LiRPA.errors import SpecError, UserError
from auto_LiRPA.values import Box, LpBall, Region

logger = logging.getLogger(__name__)


class Perturbation:
    """Base of all perturbations. A subclass of yours only has to say which region lies around ``x``."""

    def region(self, x: Tensor) -> Region:
        """The set of inputs that bounds must hold for, one per batch element of ``x`` ``[B, *shape]``."""
        raise NotImplementedError(type(self).__name__)

    def moved(self, device: torch.device | str | None, dtype: torch.dtype | None) -> Perturbation:
        """The same perturbation with its tensors elsewhere. Without tensors: itself."""
        return self


class PerturbationLpNorm(Perturbation):
    """``||x' - x||_norm <= eps``, or for the inf norm any box ``x_L <= x' <= x_U``.

    Args:
        eps: a number; a tensor with one radius per sample (``[B]`` or ``[B, 1, ...]``); for the inf norm also one per
            element (the shape of x, or a shape that broadcasts to it with as many axes).
        norm: any p >= 1, or inf.
        x_L, x_U: the box's corners (inf norm; they win over eps). For other norms only eps counts.
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
            raise UserError("PerturbationLpNorm: constraints: not supported yet; leave it out")
        self.eps = eps
        self.x_L = x_L
        self.x_U = x_U
        self.eps_min = eps_min
        if self.norm != math.inf and (x_L is not None or x_U is not None):
            logger.warning("PerturbationLpNorm: norm = %g uses eps only; x_L and x_U are ignored", self.norm)

    def set_eps(self, eps: float | Tensor) -> None:
        """Another radius from now on (training schedules)."""
        self.eps = eps

    def region(self, x: Tensor) -> Region:
        if self.norm == math.inf:
            return _checked_box(self._side(self.x_L, x, -1), self._side(self.x_U, x, +1))
        return LpBall(_finite(x), self._radii(x), self.norm)

    def moved(self, device: torch.device | str | None, dtype: torch.dtype | None) -> PerturbationLpNorm:
        def move(value: float | Tensor | None) -> float | Tensor | None:
            return value.to(device=device, dtype=dtype) if isinstance(value, Tensor) else value

        new = PerturbationLpNorm.__new__(PerturbationLpNorm)
        new.norm = self.norm
        new.eps, new.eps_min = move(self.eps) or 0.0 if not isinstance(self.eps, Tensor) else move(self.eps), self.eps_min
        new.x_L, new.x_U = move(self.x_L), move(self.x_U)
        return new

    def __repr__(self) -> str:
        box = "" if self.x_L is None and self.x_U is None else ", x_L, x_U"
        return f"PerturbationLpNorm(norm={self.norm:g}, eps={self.eps}{box})"
