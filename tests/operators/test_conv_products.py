"""Convolutions as matrix products, which GPUs take on small maps: the same map, there and back, as torch's own."""

from __future__ import annotations

import pytest
import torch

from auto_LiRPA.operators.conv import MANY_CHANNELS, SMALL_MAP, Conv
from auto_LiRPA.parallel.store import LocalStore

# in channels, out channels, height, width, kernel, stride, padding, dilation
CASES = {
    "residual": (5, 6, 4, 4, (3, 3), (1, 1), (1, 1), (1, 1)),
    "strided": (4, 7, 8, 8, (3, 3), (2, 2), (1, 1), (1, 1)),
    "rest of a stride": (3, 4, 7, 6, (2, 3), (3, 2), (0, 1), (1, 1)),
    "dilated": (3, 5, 7, 9, (3, 2), (1, 2), (2, 1), (2, 3)),
    "whole map": (4, 3, 4, 5, (4, 5), (1, 1), (0, 0), (1, 1)),
}


def _conv(case: str, block_mib: float) -> tuple[Conv, torch.nn.Conv2d]:
    inside, outside, height, width, kernel, stride, padding, dilation = CASES[case]
    torch.manual_seed(0)
    module = torch.nn.Conv2d(inside, outside, kernel, stride, padding, dilation).double()
    weight = LocalStore(block_mib).place(module.weight.detach())
    return Conv(weight, module.bias.detach(), stride, padding, dilation, 1, (inside, height, width)), module


@pytest.mark.parametrize("block_mib", [16.0, 1e-6])
@pytest.mark.parametrize("case", CASES)
def test_products_are_convolutions(case: str, block_mib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, and coefficients of any rows on the input (the transposed map); with one block of weights or several."""
    monkeypatch.setattr(Conv, "_is_product", lambda self, part: True)
    conv, module = _conv(case, block_mib)
    x = torch.randn(6, *conv.in_shape, dtype=torch.float64, requires_grad=True)
    y = module(x)
    torch.testing.assert_close(conv.forward(x.detach()), y.detach())
    rows = torch.randn(2, 3, *conv.out_shape, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(y, x, rows.flatten(0, 1))
    pulled = conv.pull(rows)
    torch.testing.assert_close(pulled.coefs[0], wanted.unflatten(0, (2, 3)))


def test_only_gpus_take_products() -> None:
    """A CPU's bits stay torch's own; on a GPU the map decides and the channels, not the rows."""
    conv, _ = _conv("residual", 16.0)
    assert min(conv.in_shape[1:]) < SMALL_MAP < MANY_CHANNELS
    assert not any(conv._is_product(part) for part in conv._segments(False))
