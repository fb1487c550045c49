"""Convolution and pooling against torch's own and against plain loops; the facts of the max-pool relaxation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from auto_LiRPA.errors import ModelError
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.pooling import AveragePool, MaxPool
from auto_LiRPA.parallel.store import LocalWeight
from auto_LiRPA.values import Interval
from tests.operators.cases import CASES, Dice, points

SEEDS = range(25)


@pytest.mark.parametrize("name", ["Conv 1d", "Conv 2d", "Conv 1d, 3 groups", "Conv 2d, 2 groups"])
def test_conv_forward_is_torchs(name: str) -> None:
    cut = 0
    for seed in SEEDS:
        dice = Dice(seed, torch.float64)
        case = CASES[name](dice)
        op = case.op
        assert isinstance(op, Conv)
        blocks = list(op.weight.blocks())
        weight = torch.cat([b.data for b in blocks])
        cut += any(b.start % max(1, op.weight.shape[0] // op.groups) for b in blocks)
        x = dice.normal(3, *case.shapes[0])
        conv = F.conv1d if x.ndim == 3 else F.conv2d
        wanted = conv(x, weight, op.bias, op.stride, op.padding, op.dilation, op.groups)
        assert tuple(wanted.shape[1:]) == op.out_shape
        torch.testing.assert_close(op.forward(x), wanted)
    assert cut > 5, "no block ended inside a group: the cases do not test the cut"


def _windows(op: AveragePool | MaxPool, x: Tensor) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """Each output position with the input positions of its window (padding left out), by plain loops."""
    dilation = getattr(op, "dilation", (1,) * len(op.kernel))
    axes = []
    for a, n in enumerate(x.shape[2:]):
        starts = [o * op.stride[a] - op.padding[0][a] for o in range(op.out_shape[1 + a])]
        axes.append(
            [[s + i * dilation[a] for i in range(op.kernel[a]) if 0 <= s + i * dilation[a] < n] for s in starts]
        )
    if len(axes) == 1:
        return [((o,), [(i,) for i in axes[0][o]]) for o in range(len(axes[0]))]
    return [
        ((o, p), [(i, j) for i in axes[0][o] for j in axes[1][p]])
        for o in range(len(axes[0]))
        for p in range(len(axes[1]))
    ]


def _entry(x: Tensor, at: tuple[int, ...]) -> Tensor:
    """The spatial position ``at`` of ``[N, C, *spatial]``."""
    for i in at:
        x = x[:, :, i]
    return x


@pytest.mark.parametrize("name", ["AveragePool 1d", "AveragePool 2d", "MaxPool 1d", "MaxPool 2d"])
def test_pool_forward_by_plain_loops(name: str) -> None:
    overhang = 0
    for seed in SEEDS:
        dice = Dice(seed, torch.float64)
        case = CASES[name](dice)
        op = case.op
        assert isinstance(op, AveragePool | MaxPool)
        x = dice.normal(2, *case.shapes[0])
        found = op.forward(x)
        assert tuple(found.shape[1:]) == op.out_shape
        for at, entries in _windows(op, x):
            window = torch.stack([_entry(x, e) for e in entries])
            if isinstance(op, MaxPool):
                wanted = window.amax(0)
            else:
                count = len(entries)
                if op.count_include_pad:
                    count = math.prod(
                        min(o * s - b + k, n + e) - (o * s - b)
                        for o, s, b, e, k, n in zip(
                            at, op.stride, op.padding[0], op.padding[1], op.kernel, x.shape[2:], strict=True
                        )
                    )
                    overhang += count < math.prod(op.kernel)
                wanted = window.sum(0) / count
            torch.testing.assert_close(_entry(found, at), wanted)
    assert overhang > 0 or name.startswith("Max")


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_average_pool_is_torchs_where_torch_has_the_geometry(include: bool, ceil_mode: bool) -> None:
    for seed in SEEDS:
        dice = Dice(seed, torch.float64)
        k, s, n = dice.pick(1, 4), dice.pick(1, 3), dice.pick(4, 8)
        p = dice.pick(0, k // 2)
        x = dice.normal(2, 2, n, n + 1)
        wanted = F.avg_pool2d(x, k, s, p, ceil_mode, include)
        op = AveragePool((k, k), (s, s), ((p, p), (p, p)), ceil_mode, include, (2, n, n + 1), tuple(wanted.shape[1:]))
        torch.testing.assert_close(op.forward(x), wanted)
        greatest = F.max_pool2d(x, k, s, p, ceil_mode=ceil_mode)
        pool = MaxPool((k, k), (s, s), ((p, p), (p, p)), (1, 1), ceil_mode, (2, n, n + 1), tuple(greatest.shape[1:]))
        torch.testing.assert_close(pool.forward(x), greatest)


def test_pools_refuse_windows_of_padding_alone() -> None:
    with pytest.raises(ModelError, match="padding only"):
        MaxPool((2,), (1,), ((2,), (0,)), (1,), False, (1, 4), (1, 5))
    with pytest.raises(ModelError, match="padding only"):
        AveragePool((2,), (1,), ((2,), (0,)), False, False, (1, 4), (1, 5)).forward(torch.ones(1, 1, 4))


def _pool(kernel: int = 2, stride: int = 2, size: int = 4) -> MaxPool:
    out = (size - kernel) // stride + 1
    return MaxPool((kernel,), (stride,), ((0,), (0,)), (1,), False, (1, size), (1, out))


def test_max_pool_takes_the_winner_exactly_and_the_best_lower_bound_otherwise() -> None:
    lower = torch.tensor([[[3.0, 0.0, -1.0, -2.0]]], dtype=torch.float64)
    upper = torch.tensor([[[4.0, 3.0, 1.0, 2.0]]], dtype=torch.float64)
    relaxation = _pool().relax(Interval(lower, upper))
    one = torch.eye(2, dtype=torch.float64).reshape(1, 2, 1, 2)
    below, above = relaxation.pull(one), relaxation.pull(-one)
    # window 0: x_0 >= 3 >= x_1 is the maximum; window 1: below x_2, above 1 + (2 - 1) / (2 + 2) * (x_3 + 2)
    assert below.coefs[0][0, :, 0].tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    assert (-above.coefs[0][0, :, 0]).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0.25]]
    assert below.bias is not None and below.bias.tolist() == [[0, 0]]
    assert above.bias is not None and (-above.bias).tolist() == [[0, 1.5]]
    (needed,) = _pool().needs_tightening(Interval(lower, upper))
    assert needed.tolist() == [[[False, False, True, True]]]


def test_max_pool_upper_plane_is_never_above_the_constant() -> None:
    """At every point of the box it is at or below max u, the usual choice."""
    dice = Dice(3, torch.float64)
    op = _pool(3, 1, 7)
    center, radius = dice.normal(50, 1, 7), dice.uniform(50, 1, 7)
    box = Interval(center - radius, center + radius)
    relaxation = op.relax(box)
    coef = -torch.eye(5, dtype=torch.float64).reshape(1, 5, 1, 5)
    pulled = relaxation.pull(coef)
    assert pulled.bias is not None
    constant = op.forward(box.upper)[:, 0]
    strictly = 0
    for (x,) in points(dice, (box,), (0.0,), 20):
        plane = -((pulled.coefs[0] * x.unsqueeze(1)).flatten(2).sum(-1) + pulled.bias)
        assert (plane <= constant + 1e-12).all()
        strictly += int((plane < constant - 1e-3).sum())
    assert strictly > 100


def test_max_pool_dominated_entries_need_no_tightening() -> None:
    lower = torch.tensor([[[0.0, 0.5, -3.0]]])
    upper = torch.tensor([[[1.0, 2.0, 0.25]]])
    (needed,) = _pool(3, 1, 3).needs_tightening(Interval(lower, upper))
    assert needed.tolist() == [[[True, True, False]]]


def test_max_pool_slopes_give_no_weight_to_padding() -> None:
    """Padding counted as an entry of value 0 would lift the lower line above a maximum that is negative."""
    op = MaxPool((3,), (1,), ((1,), (1,)), (1,), False, (1, 4), (1, 4))
    box = Interval(torch.full((1, 1, 4), -3.0), torch.full((1, 1, 4), -1.0))
    spec = op.relax(box).alpha
    assert spec is not None and isinstance(spec.upper, Tensor)
    assert spec.upper[0, 0].sum(0).tolist() == [2, 3, 3, 2]
    pulled = op.relax(box).pull(torch.eye(4).reshape(1, 4, 1, 4), spec.upper.expand(1, 4, -1, -1))
    assert (pulled.coefs[0].flatten(2).sum(-1) - 1).abs().max() < 1e-6


def test_conv_blocks_change_no_more_than_rounding() -> None:
    """One block, or blocks that cut groups: the same operator."""
    dice = Dice(5, torch.float64)
    weight, bias = dice.normal(6, 2, 3, 3), dice.normal(6)
    args = (bias, (2, 1), (1, 0), (1, 2), 3, (6, 5, 8))
    coef = dice.normal(4, *Conv(LocalWeight(weight, 6), *args).out_shape)
    wanted = Conv(LocalWeight(weight, 6), *args).transpose(coef)[0]
    for rows in (1, 2, 3, 4, 5):
        torch.testing.assert_close(Conv(LocalWeight(weight, rows), *args).transpose(coef)[0], wanted)
