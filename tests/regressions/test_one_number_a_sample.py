"""Values of one number a sample without an axis, in the middle of a network and at its end: bounded like all others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from auto_LiRPA.errors import SpecError

EPS = 0.3
METHODS = ("IBP", "CROWN", "CROWN-IBP", "forward", "CROWN-Optimized")


class Summed(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor], axis_again: bool) -> None:
        super().__init__()
        self.first, self.act, self.axis_again = nn.Linear(3, 4), act, axis_again

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3] -> [N]``, or ``[N, 1]``."""
        y = self.act(torch.relu(self.first(x)).sum(1))
        return y.unsqueeze(1) if self.axis_again else y


@pytest.mark.parametrize("axis_again", [False, True])
@pytest.mark.parametrize("act", [torch.relu, torch.tanh, lambda h: h * torch.sigmoid(h)], ids=["relu", "tanh", "swish"])
def test_bounds_hold_and_have_the_outputs_shape(act: Callable[[Tensor], Tensor], axis_again: bool) -> None:
    torch.manual_seed(5)
    x = torch.randn(2, 3)
    net = Summed(act, axis_again)
    bounded = BoundedModule(net, x)
    box = BoundedTensor(x, PerturbationLpNorm(norm=float("inf"), eps=EPS))
    y = torch.stack([net(x + EPS * (2 * torch.rand_like(x) - 1).round()) for _ in range(300)]).detach()
    for method in METHODS:
        with torch.no_grad():
            lower, upper = bounded.compute_bounds(x=(box,), method=method)
        assert lower.shape == upper.shape == net(x).shape, method
        assert (y >= lower - 1e-5).all() and (y <= upper + 1e-5).all(), method
        assert (upper - lower).max() < 20, method


def test_a_specification_without_rows_is_one_line() -> None:
    net = nn.Linear(3, 2)
    bounded = BoundedModule(net, torch.zeros(1, 3))
    box = BoundedTensor(torch.zeros(1, 3), PerturbationLpNorm(norm=float("inf"), eps=EPS))
    for shape in ((1, 0, 1, 2), (0, 1, 1, 2), (1, 0, 2)):
        with pytest.raises(SpecError, match="C has the shape"):
            bounded.compute_bounds(x=(box,), C=torch.zeros(shape), method="CROWN")
