"""Gradients that linear steps make by their adjoints, against autograd through the blocks themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.placed import PlacedAffine
from auto_LiRPA.parallel.store import LocalWeight, Weight
from auto_LiRPA.values import Window
from tests.operators.cases import CASES, Dice

NAMES = [name for name in CASES if name.split()[0] in ("Linear", "Conv", "PlacedAffine")]


def trained(weight: Weight) -> Weight:
    """The same weight as a parameter: its steps are left to autograd."""
    assert isinstance(weight, LocalWeight)
    return LocalWeight(weight.tensor.clone().requires_grad_(), weight._rows)


def window_of(op: LinearOperator, coef: Tensor) -> Window | None:
    if not isinstance(op, Conv) or op.groups != 1:
        return None
    sizes = coef.shape[2:]
    return Window(tuple(n // 3 for n in sizes), tuple(max(n - n // 4, n // 3 + 1) for n in sizes))


def results(op: LinearOperator, x: Tensor, coef: Tensor) -> dict[str, Tensor]:
    found = {"forward": op.forward(x), "abs": op.apply_abs(x), "transpose": op.transpose(coef)[0]}
    dot, window = op.bias_dot(coef), window_of(op, coef)
    if dot is not None:
        found["dot"] = dot
    if window is not None:
        inside = op.transpose_window(window.crop(coef), window)
        if inside is not None:
            found["window"] = inside[0][0]
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(6))
def test_adjoints_are_what_autograd_says(name: str, seed: int) -> None:
    dice = Dice(seed, torch.float64)
    case = CASES[name](dice)
    other = case.op.mapped(lambda t: t, trained)
    assert isinstance(case.op, LinearOperator) and isinstance(other, LinearOperator)
    x = dice.normal(2, *case.shapes[0]).requires_grad_()
    coef = dice.normal(*case.op.forward(x).shape).requires_grad_()
    ours, wanted = results(case.op, x, coef), results(other, x, coef)
    assert ours.keys() == wanted.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, wanted[key], msg=key)
        weight = dice.normal(*value.shape)
        grads = [
            torch.autograd.grad((v.sin() * weight).sum(), (x, coef), create_graph=True, allow_unused=True)
            for v in (value, wanted[key])
        ]
        for one, two in zip(*grads, strict=True):
            assert (one is None) == (two is None)
            if one is None or two is None:
                continue
            torch.testing.assert_close(one, two, msg=key)
            if one.requires_grad and two.requires_grad:
                again = [torch.autograd.grad(g.square().sum(), (x, coef), allow_unused=True) for g in (one, two)]
                for first, second in zip(*again, strict=True):
                    if first is not None and second is not None:
                        torch.testing.assert_close(first, second, msg=key)


def test_windows_are_among_the_cases() -> None:
    found = set[str]()
    for seed in range(6):
        dice = Dice(seed, torch.float64)
        case = CASES["Conv 2d"](dice)
        x = dice.normal(1, *case.shapes[0])
        assert isinstance(case.op, LinearOperator) and not isinstance(case.op, PlacedAffine)
        found |= results(case.op, x, dice.normal(*case.op.forward(x).shape)).keys()
    assert "window" in found
