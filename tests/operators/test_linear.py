"""Linear operators against their dense Jacobian, which autograd finds from the forward rule alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from auto_LiRPA.operators.base import LinearBounds, LinearOperator
from auto_LiRPA.values.windows import whole
from tests.operators.cases import BOX_KINDS, CASES, Case, Dice, in_float64, make_boxes, points, random_window

LINEAR = sorted(name for name, make in CASES.items() if make(Dice(0, torch.float64)).op.linear)
DTYPES = {torch.float64: 1e-12, torch.float32: 2e-6}
SEEDS = range(6)


def _case(name: str, seed: int, dtype: torch.dtype) -> tuple[Case, LinearOperator, Dice]:
    dice = Dice(1000 * seed + LINEAR.index(name), dtype)
    case = CASES[name](dice)
    assert isinstance(case.op, LinearOperator)
    return case, case.op, dice


def _dense(case: Case) -> tuple[list[Tensor], Tensor]:
    """``W_i`` ``[out, in_i]`` per input, and the constant term ``[out]``; in float64."""
    op = in_float64(case.op)
    zeros = tuple(torch.zeros(1, *s, dtype=torch.float64) for s in case.shapes)
    jacobian = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        lambda *xs: op.forward(*xs).flatten(), zeros
    )
    return [j.flatten(1) for j in jacobian], op.forward(*zeros).flatten()


def _close(found: Tensor, wanted: Tensor, dtype: torch.dtype, size: float = 1.0) -> None:
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=DTYPES[dtype] * (1 + size))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LINEAR)
def test_forward_is_the_linear_part_plus_the_bias(name: str, dtype: torch.dtype) -> None:
    for seed in SEEDS:
        case, op, dice = _case(name, seed, dtype)
        weights, bias = _dense(case)
        xs = [dice.normal(3, *s) for s in case.shapes]
        wanted = sum(x.flatten(1).double() @ w.T for x, w in zip(xs, weights, strict=True))
        assert isinstance(wanted, Tensor)
        _close(op.apply(*xs).flatten(1), wanted, dtype, 30)
        _close(op.forward(*xs).flatten(1), wanted + bias, dtype, 30)
        absolute = sum(x.flatten(1).double() @ w.abs().T for x, w in zip(xs, weights, strict=True))
        assert isinstance(absolute, Tensor)
        _close(op.apply_abs(*xs).flatten(1), absolute, dtype, 30)


@pytest.mark.parametrize("name", LINEAR)
def test_declared_facts_are_true(name: str) -> None:
    for seed in range(10):
        case, op, _ = _case(name, seed, torch.float64)
        weights, _ = _dense(case)
        if op.nonnegative:
            assert all((w >= 0).all() for w in weights)
        if op.elementwise:
            (w,) = weights
            assert ((w != 0).sum(0) <= 1).all(), "an input entry reaches two outputs"
            assert ((w != 0).sum(1) <= 1).all(), "an output mixes two entries"


@pytest.mark.parametrize("kind", BOX_KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LINEAR)
def test_interval_is_the_exact_range(name: str, dtype: torch.dtype, kind: str) -> None:
    """``W+ l + W- u + b`` and ``W+ u + W- l + b``."""
    case, op, dice = _case(name, BOX_KINDS.index(kind), dtype)
    weights, bias = _dense(case)
    boxes = make_boxes(dice, case, kind, batch=2)
    lower, upper = bias, bias
    for box, w in zip(boxes, weights, strict=True):
        lo, hi = box.lower.flatten(1).double(), box.upper.flatten(1).double()
        lower = lower + lo @ w.clamp_min(0).T + hi @ w.clamp_max(0).T
        upper = upper + hi @ w.clamp_min(0).T + lo @ w.clamp_max(0).T
    found = op.interval(*boxes)
    size = 30 * (1 + max(float(b.upper.abs().max() + b.lower.abs().max()) for b in boxes))
    _close(found.lower.flatten(1), lower.expand(2, -1), dtype, size)
    _close(found.upper.flatten(1), upper.expand(2, -1), dtype, size)
    if kind == "point":
        assert torch.equal(found.lower, found.upper)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LINEAR)
def test_pull_is_exact(name: str, dtype: torch.dtype) -> None:
    """Coefficients are ``coef W``, the bias is ``coef . b``; for rows per element and rows that all elements share."""
    for seed in SEEDS:
        case, op, dice = _case(name, seed, dtype)
        weights, bias = _dense(case)
        out_shape = op.forward(*(dice.normal(1, *s) for s in case.shapes)).shape[1:]
        for lead in ((1, 5), (3, 2)):
            coef = dice.normal(*lead, *out_shape)
            kept = coef.clone()
            pulled = op.pull(coef)
            assert torch.equal(coef, kept)
            flat = coef.flatten(2).double()
            for found, shape, w in zip(pulled.coefs, case.shapes, weights, strict=True):
                assert found.shape == (*lead, *shape)
                _close(found.flatten(2), flat @ w, dtype, 30)
            _close(torch.zeros(lead, dtype=dtype) if pulled.bias is None else pulled.bias, flat @ bias, dtype, 30)


@pytest.mark.parametrize("name", LINEAR)
def test_transpose_is_the_adjoint(name: str) -> None:
    for seed in SEEDS:
        case, op, dice = _case(name, seed, torch.float64)
        xs = [dice.normal(4, *s) for s in case.shapes]
        y = op.apply(*xs)
        coef = dice.normal(*y.shape)
        back = op.transpose(coef)
        left = (coef * y).flatten(1).sum(1)
        right = sum((c * x).flatten(1).sum(1) for c, x in zip(back, xs, strict=True))
        assert isinstance(right, Tensor)
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", LINEAR)
def test_transpose_of_a_window_is_that_of_the_map(name: str) -> None:
    """Coefficients that vanish outside a window: the same numbers, and none outside the windows that come back."""
    for seed in range(12):
        case, op, dice = _case(name, seed, torch.float64)
        shape = tuple(op.forward(*(dice.normal(1, *s) for s in case.shapes)).shape[1:])
        if len(shape) < 2:
            continue
        window = random_window(dice, shape[1:])
        coef = dice.normal(3, 2, shape[0], *window.size)
        kept, found = coef.clone(), op.pull_window(coef, window)
        if found is None:
            continue
        assert torch.equal(coef, kept)
        pulled, windows = found
        wanted = op.pull(window.place(coef, whole(shape[1:])))
        for part, inside, c, s in zip(pulled.coefs, windows, wanted.coefs, case.shapes, strict=True):
            torch.testing.assert_close(inside.place(part, whole(s[1:])), c, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(pulled.bias, wanted.bias, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", LINEAR)
def test_rules_carry_gradients(name: str) -> None:
    """The derivative of ``coef W`` (weighted) by coef is W again, also for weights in several blocks."""
    case, op, dice = _case(name, 1, torch.float64)
    y = op.apply(*(dice.normal(2, *s) for s in case.shapes))
    coef = dice.normal(*y.shape).requires_grad_()
    back = op.transpose(coef)
    weights = [dice.normal(*c.shape) for c in back]
    total = sum((c * w).sum() for c, w in zip(back, weights, strict=True))
    assert isinstance(total, Tensor)
    (found,) = torch.autograd.grad(total, coef)
    torch.testing.assert_close(found, op.apply(*weights), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", LINEAR)
def test_push_encloses_and_maps_exact_planes_exactly(name: str) -> None:
    for seed in SEEDS:
        case, op, dice = _case(name, seed, torch.float64)
        n, batch = 3, 2
        planes = []
        for shape in case.shapes:
            w, b = dice.normal(batch, n, *shape), dice.normal(batch, *shape)
            gap_w, gap_b = 0.1 * dice.uniform(batch, n, *shape), dice.uniform(batch, *shape)
            planes.append(LinearBounds(w, b, w + gap_w, b + gap_b))
        out = op.push(tuple(planes))
        for _ in range(10):
            x = dice.uniform(batch, n)  # >= 0, so that the upper planes are above the lower ones
            tops = [(_at(p.lower_w, p.lower_b, x), _at(p.upper_w, p.upper_b, x)) for p in planes]
            value = op.forward(*(lo + dice.uniform(*lo.shape) * (hi - lo) for lo, hi in tops))
            assert (_at(out.lower_w, out.lower_b, x) <= value + 1e-9).all()
            assert (_at(out.upper_w, out.upper_b, x) >= value - 1e-9).all()
        exact = tuple(LinearBounds(p.lower_w, p.lower_b, p.lower_w, p.lower_b) for p in planes)
        out = op.push(exact)
        torch.testing.assert_close(out.lower_w, out.upper_w)
        value = op.forward(*(_at(p.lower_w, p.lower_b, x) for p in exact))
        torch.testing.assert_close(_at(out.lower_w, out.lower_b, x), value)


def _at(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Value of planes ``[B, n, *shape]`` at ``x`` ``[B, n]``."""
    return torch.einsum("bn...,bn->b...", w, x) + b


@pytest.mark.parametrize("name", LINEAR)
def test_nan_stays_visible(name: str) -> None:
    """An output that reads a NaN bound is NaN on at least that side; the others are untouched."""
    case, op, dice = _case(name, 2, torch.float64)
    weights, _ = _dense(case)
    boxes = make_boxes(dice, case, "plain", batch=1)
    boxes[0].lower.flatten()[0] = torch.nan
    found = op.interval(*boxes)
    reads = (weights[0][:, 0] != 0).reshape(found.lower[0].shape)
    assert (found.lower[0].isnan() | found.upper[0].isnan() | ~reads).all()


def test_points_lie_in_their_boxes() -> None:
    dice = Dice(0, torch.float32)
    case = CASES["Add"](dice)
    for kind in BOX_KINDS:
        boxes = make_boxes(dice, case, kind, batch=3)
        for xs in points(dice, boxes, case.kinks, 10):
            assert all(((x >= b.lower) & (x <= b.upper)).all() for x, b in zip(xs, boxes, strict=True))
