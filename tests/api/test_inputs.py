"""Bounded tensors and perturbations: what they share, what they carry along, which region they mean."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from auto_LiRPA import BoundedTensor, PerturbationLpNorm
from auto_LiRPA.errors import SpecError, UserError
from auto_LiRPA.values import Box, LpBall


def test_a_bounded_tensor_is_its_values() -> None:
    """Shared memory, gradients through it, plain results."""
    x = torch.rand(2, 3, requires_grad=True)
    bounded = BoundedTensor(x * 2, PerturbationLpNorm(eps=0.1))
    assert isinstance(bounded, Tensor) and bounded.shape == (2, 3)
    for result in (bounded + 1, bounded[0], torch.nn.functional.linear(bounded, torch.ones(4, 3)), bounded.detach()):
        assert type(result) is Tensor
    (bounded * bounded).sum().backward()
    assert torch.allclose(x.grad if x.grad is not None else torch.zeros(()), 8 * x)
    values = torch.zeros(2)
    shared = BoundedTensor(values)
    values.add_(1)
    assert shared.ptb is None and torch.equal(shared.plain(), torch.ones(2))


def test_wrapping_again_keeps_the_first_perturbation() -> None:
    """A bounded tensor given another perturbation is another tensor."""
    first = BoundedTensor(torch.zeros(2), PerturbationLpNorm(eps=0.1))
    second = BoundedTensor(first, PerturbationLpNorm(eps=0.2))
    assert isinstance(first.ptb, PerturbationLpNorm) and first.ptb.eps == 0.1
    assert isinstance(second.ptb, PerturbationLpNorm) and second.ptb.eps == 0.2


def test_moves_take_the_perturbation_along() -> None:
    """`.to` and its relatives cast the corners and radii with the values; a clone shares nothing."""
    x = torch.rand(1, 3)
    bounded = BoundedTensor(x, PerturbationLpNorm(eps=torch.tensor([0.1]), x_L=x - 0.1, x_U=x + 0.1))
    for moved in (bounded.to(torch.float64), bounded.double(), bounded.cpu().double()):
        assert moved.dtype == torch.float64 and isinstance(moved.ptb, PerturbationLpNorm)
        for part in (moved.ptb.eps, moved.ptb.x_L, moved.ptb.x_U):
            assert isinstance(part, Tensor) and part.dtype == torch.float64
    assert bounded.double().float().dtype == torch.float32
    clone = bounded.clone()
    assert isinstance(bounded.ptb, PerturbationLpNorm) and bounded.ptb.x_L is not None
    bounded.ptb.x_L.add_(5)
    assert isinstance(clone.ptb, PerturbationLpNorm) and clone.ptb.x_L is not None
    assert torch.equal(clone.ptb.x_L, x - 0.1)
    assert "eps" in repr(bounded)


def _box(ptb: PerturbationLpNorm, x: Tensor) -> Box:
    region = ptb.region(x)
    assert isinstance(region, Box)
    return region


def test_which_box_is_meant() -> None:
    """A number, one radius per sample, one per element, corners, one corner: each as documented."""
    x = torch.zeros(2, 3)
    assert torch.equal(_box(PerturbationLpNorm(eps=0.5), x).upper, torch.full((2, 3), 0.5))
    per_sample = _box(PerturbationLpNorm(eps=torch.tensor([1.0, 2.0])), x)
    assert torch.equal(per_sample.upper, torch.tensor([[1.0] * 3, [2.0] * 3]))
    assert torch.equal(_box(PerturbationLpNorm(eps=torch.tensor([[1.0], [2.0]])), x).upper, per_sample.upper)
    per_feature = _box(PerturbationLpNorm(eps=torch.tensor([1.0, 2.0, 3.0])), x)
    assert torch.equal(per_feature.lower, -torch.tensor([[1.0, 2.0, 3.0]] * 2))
    low = torch.tensor([[-1.0, -2.0, -3.0]])
    corners = _box(PerturbationLpNorm(eps=9.0, x_L=low, x_U=torch.ones(2, 3)), x)
    assert torch.equal(corners.lower, low.expand(2, 3)) and torch.equal(corners.upper, torch.ones(2, 3))
    half = _box(PerturbationLpNorm(eps=0.5, x_L=low), x)
    assert torch.equal(half.lower, low.expand(2, 3)) and torch.equal(half.upper, torch.full((2, 3), 0.5))
    ptb = PerturbationLpNorm(eps=0.1)
    ptb.set_eps(0.7)
    assert torch.equal(_box(ptb, x).upper, torch.full((2, 3), 0.7))


def test_which_ball_is_meant(caplog: pytest.LogCaptureFixture) -> None:
    """One radius, or one per sample; corners don't clip it, and a warning says so."""
    x = torch.zeros(2, 3)
    ball = PerturbationLpNorm(eps=0.5, norm=2).region(x)
    assert isinstance(ball, LpBall) and torch.equal(ball.eps, torch.tensor([0.5, 0.5])) and ball.p == 2
    radii = PerturbationLpNorm(eps=torch.tensor([[0.5], [0.7]]), norm=1).region(x)
    assert isinstance(radii, LpBall) and torch.equal(radii.eps, torch.tensor([0.5, 0.7]))
    with caplog.at_level(logging.WARNING):
        PerturbationLpNorm(eps=0.5, norm=2, x_L=x, x_U=x)
    assert "takes eps alone" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"norm": 0.5}, "norm = 0.5"),
        ({"norm": math.nan}, "norm = nan"),
        ({"constraints": object()}, "constraints"),
    ],
)
def test_impossible_perturbations(arguments: dict[str, object], said: str) -> None:
    """Refused when they are made."""
    with pytest.raises(UserError, match=said):
        PerturbationLpNorm(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ptb", "said"),
    [
        (PerturbationLpNorm(eps=torch.tensor([0.1, 0.2])), "give it 2 axes"),
        (PerturbationLpNorm(eps=torch.ones(3, 3)), "does not fit x"),
        (PerturbationLpNorm(eps=torch.ones(2, 2), norm=2), "one number, or one per sample"),
        (PerturbationLpNorm(eps=torch.tensor([-0.1, 0.1])), "eps must be 0 or more"),
        (PerturbationLpNorm(x_L=torch.zeros(3, 2), x_U=torch.ones(3, 2)), "x_L of shape"),
        (PerturbationLpNorm(x_L=torch.zeros(2, 2).double(), x_U=torch.ones(2, 2)), "make them alike"),
    ],
)
def test_perturbations_that_do_not_fit(ptb: PerturbationLpNorm, said: str) -> None:
    """Refused when the input is known. An ambiguous list of radii (two samples of two features) is one of them."""
    with pytest.raises(SpecError, match=said):
        ptb.region(torch.zeros(2, 2))
