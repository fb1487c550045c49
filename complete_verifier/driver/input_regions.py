"""Regions of a property as tensors, rounded outwards."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auto_LiRPA.errors import SpecError
from auto_LiRPA.values import Box, LpBall, Region
from complete_verifier.spec.balls import Ball
from complete_verifier.spec.property import Property
from complete_verifier.spec.rounding import nearest64, round_up


def input_region(prop: Property, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Region:
    """The smallest regions of ``dtype`` around the exact ones: ``[n_regions, *input]``, all boxes or all balls.

    Raises:
        SpecError: the element type cannot hold them, or boxes and balls are mixed.
    """
    balls = [region.ball for region in prop.regions if region.ball is not None]
    if not balls:
        return _boxes(prop, shape, dtype, device)
    if len(balls) != len(prop.regions) or len({ball.p for ball in balls}) != 1:
        raise SpecError(f"{prop.source}: regions of different norms; give all of them the same norm")
    return _balls(balls, shape, dtype, device)


def _boxes(prop: Property, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Box:
    kind = _numpy(dtype)
    sides: tuple[list[NDArray[np.floating]], list[NDArray[np.floating]]] = ([], [])
    for region in prop.regions:
        try:
            ends = region.box.outward(kind)
        except SpecError as error:
            raise SpecError(f"{prop.source}: {error}") from None
        for side, end in zip(sides, ends, strict=True):
            side.append(end)
    lower, upper = (torch.from_numpy(np.stack(side)).reshape(-1, *shape).to(device, dtype) for side in sides)
    return Box(lower, upper)


def _balls(balls: list[Ball], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> LpBall:
    """Each ball about the nearest centre that ``dtype`` has; the radius grows by how far that is off, rounded up."""
    kind = _numpy(dtype)
    centers, radii = [], []
    for ball in balls:
        center = nearest64(ball.center).astype(kind)
        # a norm is at most the sum of the parts, whatever p is
        off = sum(
            (abs(Fraction(exact) - Fraction(float(near))) for exact, near in zip(ball.center, center, strict=True)),
            Fraction(0),
        )
        radius = Fraction(ball.radius) + off
        centers.append(center)
        radii.append(_above(radius, kind))
    x0 = torch.from_numpy(np.stack(centers)).reshape(-1, *shape).to(device, dtype)
    return LpBall(x0, _tensor(radii, kind, device, dtype), balls[0].p)


def _above(value: Fraction, kind: type[np.floating]) -> float:
    """The smallest number of that type which is not below the fraction."""
    near = float(value)
    while Fraction(near) < value:
        near = float(np.nextafter(near, np.inf))
    exact = Decimal(near)  # a float64 not below the fraction; now in the type asked for
    return float(round_up([exact], np.array([near]), kind)[0])


def _tensor(values: list[float], kind: type[np.floating], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=kind)).to(device, dtype)


def _numpy(dtype: torch.dtype) -> type[np.floating]:
    return np.float64 if dtype == torch.float64 else np.float32
