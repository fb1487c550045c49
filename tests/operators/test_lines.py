"""Lines of scalar functions over boxes of every size and place: sound without slack, tight where theory says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from auto_LiRPA.errors import ModelError
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.base import LinearBounds
from auto_LiRPA.operators.elementwise import ElementwiseOperator
from auto_LiRPA.operators.piecewise import Abs, Clip, Sign
from auto_LiRPA.operators.smooth import Power, Sigmoid, SmoothOperator, Tanh
from auto_LiRPA.values import Interval, Lines

SMOOTH: tuple[SmoothOperator, ...] = (
    Sigmoid(),
    Tanh(),
    *(Power(p) for p in (2.0, 3.0, 4.0, 5.0, 0.5, 1.5, -1.0, -2.5)),
)
PIECEWISE: tuple[ElementwiseOperator, ...] = (Abs(), Sign(), Clip(-1.0, 0.5), Clip(None, 0.0), Clip(0.0, 6.0))
DTYPES = (torch.float32, torch.float64)


def _boxes(dtype: torch.dtype, count: int, positive: bool, seed: int = 0) -> Interval:
    """Boxes around and beside 0, with ends and widths from 1e-8 to 1e4; a tenth of them end exactly at 0."""
    gen = torch.Generator().manual_seed(seed)

    def scaled(low: float, high: float) -> Tensor:
        return 10 ** (low + (high - low) * torch.rand(count, generator=gen, dtype=torch.float64))

    lower = scaled(-8, 4) * torch.randn(count, generator=gen, dtype=torch.float64).sign()
    width = torch.where(torch.rand(count, generator=gen) < 0.1, lower.abs(), scaled(-8, 4))
    if positive:
        lower = scaled(-3, 2)
    lower, upper = lower.to(dtype), (lower + width).to(dtype)
    return Interval(lower, torch.maximum(lower, upper))


def _grid(box: Interval) -> Tensor:
    """``[points, n]``: even steps, steps that crowd at both ends, and 0 where it is inside. In float64, in the box."""
    even = torch.linspace(0, 1, 33, dtype=torch.float64)
    crowded = torch.logspace(-12, 0, 25, dtype=torch.float64)
    shares = torch.cat([even, crowded, 1 - crowded])
    lo, hi = box.lower.double(), box.upper.double()
    inside = lo + shares[:, None] * (hi - lo)
    near_zero = torch.cat([torch.zeros(1), crowded * 10, -crowded * 10])[:, None].double().expand(-1, len(lo))
    return torch.minimum(torch.maximum(torch.cat([inside, near_zero]), lo), hi)


def _excess(op: ElementwiseOperator, box: Interval, lines: Lines) -> tuple[Tensor, Tensor]:
    """How far the lines (as real numbers) pass the function at each point, and the size of the numbers in play."""
    x = _grid(box)
    y = op.forward(x)
    zero = torch.zeros((), dtype=torch.float64)
    at_lower = zero if lines.lower_offset is None else lines.lower_offset.double()
    at_upper = zero if lines.upper_offset is None else lines.upper_offset.double()
    below, above = lines.lower_slope.double() * x, lines.upper_slope.double() * x
    size = y.abs() + below.abs() + above.abs() + at_lower.abs() + at_upper.abs()
    return torch.maximum(below + at_lower - y, y - above - at_upper), size


def _shares(op: ElementwiseOperator, box: Interval, seed: int) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    low, high = op.alpha_range(box)
    share = (1.2 * torch.rand(low.shape, generator=gen, dtype=torch.float64) - 0.1).clamp(0, 1).to(low)
    return low + share * (high - low)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", SMOOTH, ids=repr)
def test_smooth_lines_do_not_pass_the_curve(op: SmoothOperator, dtype: torch.dtype) -> None:
    """float32 lines, taken as the real numbers that they are, hold against the float64 function without any slack."""
    positive = isinstance(op, Power) and not (op.exponent >= 0 and op.exponent.is_integer())
    box = _boxes(dtype, 3000, positive)
    for alpha in (None, *(_shares(op, box, seed) for seed in range(2))):
        excess, size = _excess(op, box, op.lines(box, alpha))
        # float64 lines can only be measured with float64's own rounding
        slack = 0 if dtype == torch.float32 else 1e-14 * size
        assert (excess <= slack).all(), f"passes by {(excess - slack).max().item():.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", [*PIECEWISE, *SMOOTH], ids=repr)
def test_lines_hold_and_the_default_is_the_initial_alpha(op: ElementwiseOperator, dtype: torch.dtype) -> None:
    positive = isinstance(op, Power) and not (op.exponent >= 0 and op.exponent.is_integer())
    box = _boxes(dtype, 2000, positive, seed=5)
    rounding = 1e-6 if dtype == torch.float32 else 1e-14
    for alpha in (None, op.initial_alpha(box), _shares(op, box, 3), *op.alpha_range(box)):
        excess, size = _excess(op, box, op.lines(box, alpha))
        assert (excess <= rounding * size).all()
    default, initial = op.lines(box), op.lines(box, op.initial_alpha(box))
    assert torch.equal(default.lower_slope, initial.lower_slope)
    assert torch.equal(default.upper_slope, initial.upper_slope)


@pytest.mark.parametrize("lo, hi", [(2.0, 3.0), (-3.0, -1.0), (-1.0, 2.0)])
def test_a_square_has_its_chord_above_and_a_tangent_below(lo: float, hi: float) -> None:
    """The upper bound of x^2 on [2, 3] is 9; a tangent taken as the upper line would give 8.75."""
    box = Interval(torch.tensor([lo], dtype=torch.float64), torch.tensor([hi], dtype=torch.float64))
    lines = Power(2.0).lines(box)
    assert lines.upper_slope.item() == pytest.approx(lo + hi)
    assert lines.upper_offset is not None and lines.lower_offset is not None
    assert lines.upper_offset.item() == pytest.approx(-lo * hi, abs=1e-12)
    middle = (lo + hi) / 2
    assert lines.lower_slope.item() == pytest.approx(2 * middle, abs=1e-12)
    assert lines.lower_offset.item() == pytest.approx(-(middle**2), abs=1e-12)
    greatest = max(lines.upper_slope.item() * x + lines.upper_offset.item() for x in (lo, hi))
    assert greatest == pytest.approx(max(lo * lo, hi * hi), abs=1e-12)


@pytest.mark.parametrize("op", [Sigmoid(), Tanh()], ids=repr)
def test_s_shaped_lines_are_as_tight_as_lines_get(op: SmoothOperator) -> None:
    """Each default line meets the curve (a tangent or chord), and across 0 also its far end: no parallel is tighter."""
    gen = torch.Generator().manual_seed(1)
    lower = -4 + 6 * torch.rand(500, generator=gen, dtype=torch.float64)
    box = Interval(lower, lower + 0.1 + 4 * torch.rand(500, generator=gen, dtype=torch.float64))
    lines = op.lines(box)
    x = box.lower + torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None] * (box.upper - box.lower)
    assert lines.upper_offset is not None and lines.lower_offset is not None
    above = (lines.upper_slope * x + lines.upper_offset - op.forward(x)).amin(0)
    below = (op.forward(x) - lines.lower_slope * x - lines.lower_offset).amin(0)
    assert (above < 1e-8).all() and (below < 1e-8).all()
    across = (box.lower < 0) & (box.upper > 0)
    at_lower = lines.upper_slope * box.lower + lines.upper_offset - op.forward(box.lower)
    at_upper = op.forward(box.upper) - lines.lower_slope * box.upper - lines.lower_offset
    assert across.sum() > 100 and (at_lower[across] < 1e-9).all() and (at_upper[across] < 1e-9).all()


@pytest.mark.parametrize("op", [Sigmoid(), Tanh()], ids=repr)
@pytest.mark.parametrize("dtype", DTYPES)
def test_far_and_unbounded_boxes_stay_within_the_image(op: SmoothOperator, dtype: torch.dtype) -> None:
    """Saturated or unbounded: lines stay near the function's image (no slope noise, no NaN)."""
    ends = [
        (-torch.inf, torch.inf),
        (-torch.inf, 1.0),
        (-1e30, 1e30),
        (50.0, 1e6),
        (-1e6, -50.0),
        (-1e6, 1e6),
        (20.0, 21.0),
    ]
    box = Interval(*(torch.tensor(side, dtype=dtype) for side in zip(*ends, strict=True)))
    lines = op.lines(box)
    values = torch.cat([op.forward(box.lower), op.forward(box.upper)])
    assert lines.upper_offset is not None and lines.lower_offset is not None
    for slope, offset in ((lines.lower_slope, lines.lower_offset), (lines.upper_slope, lines.upper_offset)):
        for side in (box.lower, box.upper):
            at = torch.where(slope == 0, 0, slope * side) + offset
            assert (at >= values.min() - 2.1).all() and (at <= values.max() + 2.1).all()


def test_powers_refuse_inputs_without_a_value() -> None:
    box = Interval(torch.tensor([-0.5, 1.0]), torch.tensor([1.0, 2.0]))
    for exponent in (0.5, 1.5, -1.0):
        for action in (Power(exponent).interval, Power(exponent).relax):
            with pytest.raises(ModelError, match=r"Pow with exponent .* needs inputs .* -0.5"):
                action(box)
    zero = Interval(torch.zeros(1), torch.ones(1))
    with pytest.raises(ModelError, match="needs inputs above 0"):
        Power(-2.0).relax(zero)
    lines = Power(0.5).lines(zero)
    assert lines.upper_slope.isfinite().all() and lines.lower_slope.item() == pytest.approx(1.0)


def test_clip_refuses_crossed_limits() -> None:
    with pytest.raises(ModelError, match="leave no interval"):
        Clip(1.0, 0.0)


@pytest.mark.parametrize(
    "lo, hi, below, above",
    [
        (0.0, 0.0, (0.0, 0.0), (0.0, 0.0)),
        (0.0, 2.0, (0.5, 0.0), (0.0, 1.0)),
        (-2.0, 0.0, (0.0, -1.0), (0.5, 0.0)),
        (1.0, 2.0, (0.0, 1.0), (0.0, 1.0)),
        (-2.0, -1.0, (0.0, -1.0), (0.0, -1.0)),
        (-1.0, 4.0, (0.5, -1.0), (0.0, 1.0)),
        (-4.0, 1.0, (0.0, -1.0), (0.5, 1.0)),
    ],
)
def test_sign_at_zero(lo: float, hi: float, below: tuple[float, float], above: tuple[float, float]) -> None:
    lines = Sign().lines(Interval(torch.tensor([lo]), torch.tensor([hi])))
    assert lines.upper_offset is not None and lines.lower_offset is not None
    assert (lines.lower_slope.item(), lines.lower_offset.item()) == below
    assert (lines.upper_slope.item(), lines.upper_offset.item()) == above


def test_clip_is_relu_where_only_its_lower_limit_counts() -> None:
    box = _boxes(torch.float64, 500, positive=False, seed=9)
    op = Clip(0.0, None)
    clip, relu = op.lines(box), Relu().lines(box)
    other = op.lines(box, _shares(op, box, 4))  # alpha moves the lower line alone: no hinge inside turns the upper one
    torch.testing.assert_close(other.upper_slope, clip.upper_slope)
    for name in ("lower_slope", "upper_slope"):
        torch.testing.assert_close(getattr(clip, name), getattr(relu, name), rtol=1e-9, atol=1e-12)
    assert clip.upper_offset is not None and relu.upper_offset is not None
    torch.testing.assert_close(clip.upper_offset, relu.upper_offset, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("leak", [0.0, 0.01, 0.3])
def test_leaky_relu_forward_mode_on_many_intervals(leak: float) -> None:
    """Forward mode through LeakyReLU was wrong on 175 of 400 intervals elsewhere; 1000 here, planes of either sign."""
    gen = torch.Generator().manual_seed(2)
    n = 1000
    slope = torch.randn(n, generator=gen, dtype=torch.float64)
    base = torch.randn(n, generator=gen, dtype=torch.float64)
    gap = torch.rand(n, generator=gen, dtype=torch.float64)
    # value between (slope - tilt) x + base - gap and (slope + tilt) x + base + gap, x in [0, 1]
    tilt = torch.rand(n, generator=gen, dtype=torch.float64)
    lower = base - gap + (slope - tilt).clamp_max(0)
    upper = base + gap + (slope + tilt).clamp_min(0)
    low, high = (slope - tilt).reshape(n, 1, 1), (slope + tilt).reshape(n, 1, 1)
    out = (
        Relu(leak)
        .relax(Interval(lower[:, None], upper[:, None]))
        .push((LinearBounds(low, (base - gap)[:, None], high, (base + gap)[:, None]),))
    )
    for x in torch.linspace(0, 1, 21, dtype=torch.float64):
        for share in (-1.0, -0.3, 0.4, 1.0):
            y = Relu(leak).forward((slope + share * tilt) * x + base + share * gap)
            assert (out.lower_w[:, 0, 0] * x + out.lower_b[:, 0] <= y + 1e-12).all()
            assert (out.upper_w[:, 0, 0] * x + out.upper_b[:, 0] >= y - 1e-12).all()


def test_tiny_intervals_keep_their_chord() -> None:
    """A floor under u - l would tilt the chord of an interval narrower than the floor below the function."""
    hi = torch.logspace(-30, -8, 23, dtype=torch.float64)
    for lo in (-hi, -3 * hi, -hi / 7):
        lines = Relu().lines(Interval(lo, hi))
        assert lines.upper_offset is not None
        assert ((lines.upper_slope * hi + lines.upper_offset) / hi >= 1 - 1e-12).all()


def test_float64_keeps_a_leak_that_float32_cannot_hold() -> None:
    lines = Relu(0.1).lines(Interval(*torch.tensor([[-2.0, -1.0], [-1.0, 3.0]], dtype=torch.float64)))
    assert lines.lower_slope[0].item() == 0.1 and lines.upper_slope[0].item() == 0.1
