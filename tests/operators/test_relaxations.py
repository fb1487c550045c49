"""Nonlinear operators: every bound that a relaxation gives holds at every sampled point of its box."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from auto_LiRPA.operators.base import LinearBounds, NonlinearOperator, Pulled, Relaxation
from auto_LiRPA.values import Interval
from auto_LiRPA.values.windows import whole
from tests.operators.cases import BOX_KINDS, CASES, Case, Dice, in_float64, make_boxes, points, random_window

NONLINEAR = sorted(name for name, make in CASES.items() if not make(Dice(0, torch.float64)).op.linear)
# Rounding allowed, relative to the numbers that were added up.
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-6}
LEADS = ((1, 4), (3, 4))  # rows shared by the batch, rows of their own


def _case(name: str, seed: int, dtype: torch.dtype) -> tuple[Case, NonlinearOperator, Dice]:
    dice = Dice(1000 * seed + NONLINEAR.index(name), dtype)
    case = CASES[name](dice)
    assert isinstance(case.op, NonlinearOperator)
    return case, case.op, dice


def _out_shape(case: Case) -> tuple[int, ...]:
    return tuple(case.op.forward(*(torch.ones(1, *s) for s in case.shapes)).shape[1:])


def _random_alpha(dice: Dice, relaxation: Relaxation, batch: int, rows: int, inside: bool = False) -> Tensor | None:
    """Anywhere in the declared range; its ends included unless ``inside``."""
    spec = relaxation.alpha
    if spec is None:
        return None
    shape = (batch, rows, *spec.initial.shape[1:])
    low, high = (torch.as_tensor(x, dtype=dice.dtype).expand(shape) for x in (spec.lower, spec.upper))
    share = 0.1 + 0.8 * dice.uniform(*shape) if inside else (1.5 * dice.uniform(*shape) - 0.25).clamp(0, 1)
    return torch.minimum(low + share * (high - low), high)


def _assert_below(case: Case, pulled: Pulled, coef: Tensor, xs: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """``sum coefs . x + bias <= coef . op(x)``, evaluated in float64."""
    y = in_float64(case.op).forward(*(x.double() for x in xs)).flatten(1).unsqueeze(1)
    truth = coef.double().flatten(2) * y
    assert pulled.bias is not None
    claim, size = pulled.bias.double(), pulled.bias.double().abs() + truth.abs().sum(-1)
    for c, x in zip(pulled.coefs, xs, strict=True):
        terms = c.double().flatten(2) * x.double().flatten(1).unsqueeze(1)
        claim, size = claim + terms.sum(-1), size + terms.abs().sum(-1)
    over = claim - truth.sum(-1) - DTYPES[dtype] * size
    assert (over <= 0).all(), f"claims {over.max().item():.3g} too much"


@pytest.mark.parametrize("kind", BOX_KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NONLINEAR)
def test_bounds_hold_in_the_box(name: str, dtype: torch.dtype, kind: str) -> None:
    """Interval and pulled bound, for the default slopes and for random ones within their range."""
    case, op, dice = _case(name, BOX_KINDS.index(kind), dtype)
    boxes = make_boxes(dice, case, kind, batch=3)
    relaxation = op.relax(*boxes)
    checks = []
    for lead in LEADS:
        coef = dice.normal(*lead, *_out_shape(case))
        for alpha in (None, _random_alpha(dice, relaxation, 3, lead[1])):
            checks.append((relaxation.pull(coef, alpha), coef))
    image = op.interval(*boxes)
    rounding = DTYPES[dtype] * (1 + image.lower.abs() + image.upper.abs())
    for xs in points(dice, boxes, case.kinks, 12):
        y = op.forward(*xs)
        assert ((image.lower - rounding <= y) & (y <= image.upper + rounding)).all()
        for pulled, coef in checks:
            _assert_below(case, pulled, coef, xs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NONLINEAR)
def test_point_boxes_are_exact(name: str, dtype: torch.dtype) -> None:
    case, op, dice = _case(name, 7, dtype)
    boxes = make_boxes(dice, case, "point", batch=3)
    xs = tuple(b.lower for b in boxes)
    y = op.forward(*xs)
    image = op.interval(*boxes)
    assert torch.equal(image.lower, image.upper)
    torch.testing.assert_close(image.lower, y)
    relaxation = op.relax(*boxes)
    for alpha in (None, _random_alpha(dice, relaxation, 3, 4)):
        coef = dice.normal(3, 4, *y.shape[1:])
        pulled = relaxation.pull(coef, alpha)
        assert pulled.bias is not None
        found = sum((c * x.unsqueeze(1)).flatten(2).sum(-1) for c, x in zip(pulled.coefs, xs, strict=True))
        wanted = (coef * y.unsqueeze(1)).flatten(2).sum(-1)
        size = 1 + (coef * y.unsqueeze(1)).flatten(2).abs().sum(-1).max().item()
        torch.testing.assert_close(found + pulled.bias, wanted, rtol=0, atol=10 * DTYPES[dtype] * size)


@pytest.mark.parametrize("kind", ["plain", "touching", "mixed"])
@pytest.mark.parametrize("name", NONLINEAR)
def test_default_lines_are_those_of_the_initial_slopes(name: str, kind: str) -> None:
    case, op, dice = _case(name, 8, torch.float64)
    relaxation = op.relax(*make_boxes(dice, case, kind, batch=3))
    spec = relaxation.alpha
    if spec is None:
        return
    assert spec.initial.shape[0] == 3
    assert ((spec.initial.unsqueeze(1) >= spec.lower) & (spec.initial.unsqueeze(1) <= spec.upper)).all()
    coef = dice.normal(3, 4, *_out_shape(case))
    default = relaxation.pull(coef)
    initial = relaxation.pull(coef, spec.initial.unsqueeze(1).expand(-1, 4, -1, -1))
    torch.testing.assert_close(default.coefs, initial.coefs, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(default.bias, initial.bias, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", NONLINEAR)
def test_pinned_neurons_stay_the_variables_when_boxes_move(name: str) -> None:
    case, op, dice = _case(name, 9, torch.float64)
    first = op.relax(*make_boxes(dice, case, "wide", batch=2)).alpha
    if first is None:
        return
    boxes = make_boxes(dice, case, "mixed", batch=2)
    relaxation = op.relax(*boxes)
    relaxation.pinned = first.index
    spec = relaxation.alpha
    assert spec is not None and torch.equal(spec.index, first.index)
    assert spec.initial.shape == first.initial.shape
    coef = dice.normal(2, 3, *_out_shape(case))
    pulled = relaxation.pull(coef, _random_alpha(dice, relaxation, 2, 3))
    for xs in points(dice, boxes, case.kinks, 12):
        _assert_below(case, pulled, coef, xs, torch.float64)


@pytest.mark.parametrize("name", NONLINEAR)
def test_pull_leaves_its_arguments_alone_and_owned_changes_no_number(name: str) -> None:
    case, op, dice = _case(name, 10, torch.float32)
    relaxation = op.relax(*make_boxes(dice, case, "mixed", batch=3))
    for lead in LEADS:
        for alpha in (None, _random_alpha(dice, relaxation, 3, lead[1])):
            coef = dice.normal(*lead, *_out_shape(case))
            kept, kept_alpha = coef.clone(), None if alpha is None else alpha.clone()
            with torch.no_grad():
                plain = relaxation.pull(coef, alpha)
                assert torch.equal(coef, kept)
                assert alpha is None or kept_alpha is None or torch.equal(alpha, kept_alpha)
                owned = relaxation.pull(coef.clone(), alpha, owned=True)
            assert all(torch.equal(a, b) for a, b in zip(plain.coefs, owned.coefs, strict=True))
            assert plain.bias is not None and owned.bias is not None and torch.equal(plain.bias, owned.bias)


@pytest.mark.parametrize("kind", ["plain", "touching", "mixed"])
@pytest.mark.parametrize("name", NONLINEAR)
def test_values_are_the_pieces_that_pull_took(name: str, kind: str) -> None:
    """``coef . values(coef, x) = sum coefs . x + bias`` at any x, in the box or not."""
    case, op, dice = _case(name, 11, torch.float64)
    boxes = make_boxes(dice, case, kind, batch=3)
    relaxation = op.relax(*boxes)
    for lead in LEADS:
        coef = dice.normal(*lead, *_out_shape(case))
        xs = tuple(dice.normal(3, lead[1], *s) for s in case.shapes)
        for alpha in (None, _random_alpha(dice, relaxation, 3, lead[1])):
            pulled = relaxation.pull(coef, alpha)
            assert pulled.bias is not None
            values = relaxation.values(coef, xs, alpha)
            assert values.shape == (3, lead[1], *_out_shape(case))
            left = (coef * values).flatten(2).sum(-1)
            right = sum((c * x).flatten(2).sum(-1) for c, x in zip(pulled.coefs, xs, strict=True)) + pulled.bias
            torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["plain", "wide", "mixed"])
@pytest.mark.parametrize("name", NONLINEAR)
def test_gradient_is_that_of_the_pulled_bound(name: str, kind: str) -> None:
    """Against autograd through `relax` and `pull`, the point x held fixed (envelope theorem)."""
    for lead in LEADS:
        case, op, dice = _case(name, 12, torch.float64)
        boxes = make_boxes(dice, case, kind, batch=3)
        leaves = [t.clone().requires_grad_() for b in boxes for t in (b.lower, b.upper)]
        relaxation = op.relax(*(Interval(*leaves[2 * i : 2 * i + 2]) for i in range(len(boxes))))
        coef, weight = dice.normal(*lead, *_out_shape(case)), dice.uniform(3, lead[1])
        xs = tuple(b.lower.unsqueeze(1) + 0.3 * (b.upper - b.lower).unsqueeze(1).expand(-1, lead[1], *b.lower.shape[1:])
                   for b in boxes)  # fmt: skip
        for alpha in (None, _random_alpha(dice, relaxation, 3, lead[1], inside=True)):
            variables = leaves if alpha is None else [*leaves, alpha.detach().requires_grad_()]
            pulled = relaxation.pull(coef, None if alpha is None else variables[-1])
            assert pulled.bias is not None
            bound = sum((c * x).flatten(2).sum(-1) for c, x in zip(pulled.coefs, xs, strict=True)) + pulled.bias
            total = (weight * bound).sum() + 0 * sum(v.sum() for v in variables)  # lines may not depend on anything
            wanted = torch.autograd.grad(total, variables, retain_graph=True, allow_unused=True)
            found = op.relax(*boxes).gradient(coef, xs, weight, alpha)
            assert (found.alpha is None) == (alpha is None)
            slopes_only = op.relax(*boxes).gradient(coef, xs, weight, alpha, with_boxes=False).alpha
            torch.testing.assert_close(slopes_only, found.alpha, rtol=0, atol=0)
            for i, box in enumerate(found.boxes):
                assert box is not None
                _same(box.lower, wanted[2 * i], variables[2 * i])
                _same(box.upper, wanted[2 * i + 1], variables[2 * i + 1])
            if found.alpha is not None:
                _same(found.alpha, wanted[-1], variables[-1])


def _same(found: Tensor, wanted: Tensor | None, variable: Tensor) -> None:
    assert found.shape == variable.shape
    wanted = torch.zeros_like(variable) if wanted is None else torch.nan_to_num(wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NONLINEAR)
def test_autograd_of_the_lines_is_the_true_derivative(name: str) -> None:
    """Autograd itself against finite differences: a tangent point solves an equation that moves with the box."""
    case, op, dice = _case(name, 13, torch.float64)
    boxes = tuple(Interval(b.lower + 1e-3, b.upper + 2e-3) for b in make_boxes(dice, case, "plain", batch=2))
    coef = dice.normal(2, 3, *_out_shape(case))
    xs = tuple((b.lower + 0.3 * (b.upper - b.lower)).unsqueeze(1) for b in boxes)
    sides = [t.clone().requires_grad_() for b in boxes for t in (b.lower, b.upper)]

    def bound(*sides: Tensor) -> Tensor:
        moved = tuple(Interval(*sides[2 * i : 2 * i + 2]) for i in range(len(boxes)))
        pulled = op.relax(*moved).pull(coef)
        assert pulled.bias is not None
        claim = sum((c * x).flatten(2).sum(-1) for c, x in zip(pulled.coefs, xs, strict=True))
        return claim + pulled.bias + 0 * sum(s.sum() for s in sides)

    assert torch.autograd.gradcheck(bound, sides, eps=1e-7, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "touching", "wide", "mixed"])
@pytest.mark.parametrize("name", NONLINEAR)
def test_push_encloses_the_operator(name: str, kind: str) -> None:
    """Planes over a network input x in [0, 1]^n enclose the values; the operator's own values must stay enclosed."""
    case, op, dice = _case(name, 14, torch.float64)
    boxes = make_boxes(dice, case, kind, batch=2)
    n = 3
    planes = []
    for box in boxes:
        # an affine function of x that stays inside the box, between planes of other slopes (x >= 0 keeps them apart)
        width = (box.upper - box.lower).unsqueeze(1)
        slope = width * (2 * dice.uniform(2, n, *box.lower.shape[1:]) - 1) / n
        base = box.lower - slope.clamp_max(0).sum(1)
        gap, tilt = 0.1 * dice.uniform(*base.shape), 0.3 * dice.uniform(*slope.shape)
        planes.append((slope, base, LinearBounds(slope - tilt, base - gap, slope + 2 * tilt, base + gap)))
    out = op.relax(*boxes).push(tuple(p for _, _, p in planes))
    for i in range(30):
        x = dice.uniform(2, n) if i % 2 else dice.uniform(2, n).round()
        inside = (torch.einsum("bn...,bn->b...", slope, x) + base for slope, base, _ in planes)
        y = op.forward(*(torch.minimum(torch.maximum(v, b.lower), b.upper) for v, b in zip(inside, boxes, strict=True)))
        low = torch.einsum("bn...,bn->b...", out.lower_w, x) + out.lower_b
        high = torch.einsum("bn...,bn->b...", out.upper_w, x) + out.upper_b
        rounding = 1e-9 * (1 + y.abs() + low.abs() + high.abs())
        assert (low <= y + rounding).all() and (high >= y - rounding).all()


@pytest.mark.parametrize("name", NONLINEAR)
def test_neurons_that_need_no_tightening_are_exact(name: str) -> None:
    """If no neuron asks for tighter bounds, the relaxation is the function: no slack for a backward pass to remove."""
    seen = 0
    for seed in range(8):
        case, op, dice = _case(name, seed, torch.float64)
        for kind in ("plain", "tiny", "point"):
            boxes = make_boxes(dice, case, kind, batch=4)
            asked = torch.stack([n.flatten(1).any(1) for n in op.needs_tightening(*boxes)]).any(0)
            coef = dice.normal(4, 2, *_out_shape(case))
            pulled = op.relax(*boxes).pull(coef)
            assert pulled.bias is not None
            for xs in points(dice, boxes, case.kinks, 4):
                claim = sum((c * x.unsqueeze(1)).flatten(2).sum(-1) for c, x in zip(pulled.coefs, xs, strict=True))
                truth = (coef * op.forward(*xs).unsqueeze(1)).flatten(2).sum(-1)
                gap = (truth - claim - pulled.bias)[~asked]
                assert (gap.abs() <= 1e-9).all()
                seen += gap.numel()
    always = name.startswith(("Power", "Sigmoid", "Tanh", "Exp", "Reciprocal")) and name not in ("Power 0", "Power 1")
    assert seen > 0 or always


@pytest.mark.parametrize("name", NONLINEAR)
def test_a_narrower_box_has_no_looser_interval(name: str) -> None:
    case, op, dice = _case(name, 15, torch.float64)
    for kind in BOX_KINDS:
        boxes = make_boxes(dice, case, kind, batch=3)
        inner = []
        for box in boxes:
            ends = [box.lower + dice.uniform(*box.lower.shape) * (box.upper - box.lower) for _ in range(2)]
            inner.append(Interval(torch.minimum(*ends), torch.maximum(*ends)))
        wide, narrow = op.interval(*boxes), op.interval(*inner)
        assert (narrow.lower >= wide.lower - 1e-12 * (1 + wide.lower.abs())).all()
        assert (narrow.upper <= wide.upper + 1e-12 * (1 + wide.upper.abs())).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spoiled", [(torch.nan, None), (None, torch.nan), (torch.nan, torch.nan), (-torch.inf, None),
                                     (None, torch.inf), (-torch.inf, torch.inf)])  # fmt: skip
@pytest.mark.parametrize("name", NONLINEAR)
def test_unknown_bounds_are_never_taken_for_tight_ones(
    name: str, spoiled: tuple[float | None, float | None], dtype: torch.dtype
) -> None:
    """A NaN or infinite side says nothing: what comes out is NaN, infinite, or true on the whole half line."""
    case, op, dice = _case(name, 16, dtype)
    if case.least is not None and spoiled[0] is not None and spoiled[0] == -torch.inf:
        return  # outside the domain: refused, tested elsewhere
    for kind in ("plain", "touching"):
        box, *others = make_boxes(dice, case, kind, batch=2)
        lower, upper = box.lower.clone(), box.upper.clone()
        pick = dice.uniform(*lower.shape) < 0.5
        pick.view(-1)[0] = True
        if spoiled[0] is not None:
            lower[pick] = spoiled[0]
        if spoiled[1] is not None:
            upper[pick] = spoiled[1]
        relaxation, image = op.relax(Interval(lower, upper), *others), op.interval(Interval(lower, upper), *others)
        for far in (0.0, 1.0, 100.0):
            floor = -torch.inf if case.least is None else case.least
            x_lo = (box.lower - far).clamp_min(floor) if spoiled[0] is not None else box.lower
            x_hi = box.upper + far if spoiled[1] is not None else box.upper
            reached = Interval(torch.where(pick, x_lo, box.lower), torch.where(pick, x_hi, box.upper))
            # points stand in the place of rows; neuron by neuron, as a sum would be NaN if one of them is
            found = zip(*points(dice, (reached, *others), case.kinks, 6), strict=True)
            xs = tuple(torch.stack(x, dim=1) for x in found)
            x = xs[0]
            y = op.forward(*(v.flatten(0, 1) for v in xs)).reshape(*x.shape[:2], *_out_shape(case))
            rounding = 1e-5 * (1 + y.abs())
            assert not ((y < image.lower.unsqueeze(1) - rounding) | (y > image.upper.unsqueeze(1) + rounding)).any()
            for alpha in (None, _random_alpha(dice, relaxation, 2, x.shape[1])):
                assert not (_one_by_one(name, relaxation, torch.ones_like(y), xs, alpha) > y + rounding).any()
                assert not (_one_by_one(name, relaxation, -torch.ones_like(y), xs, alpha) < y - rounding).any()


def _one_by_one(
    name: str, relaxation: Relaxation, coef: Tensor, xs: tuple[Tensor, ...], alpha: Tensor | None
) -> Tensor:
    """Values of the pieces that single outputs take; those of a Softmax depend on the whole group's coefficients."""
    if "Softmax" not in name:
        return relaxation.values(coef, xs, alpha)
    flat = coef.flatten(2)
    found = []
    for i in range(flat.shape[2]):
        alone = torch.zeros_like(flat).index_copy(2, torch.tensor([i]), flat[:, :, i : i + 1])
        found.append(relaxation.values(alone.reshape(coef.shape), xs, alpha).flatten(2)[:, :, i])
    return torch.stack(found, -1).reshape(coef.shape)


@pytest.mark.parametrize("name", NONLINEAR)
def test_a_window_of_the_map_has_the_same_lines(name: str) -> None:
    """Coefficients that vanish outside a window: the cropped relaxation gives what the whole one gives."""
    case, op, dice = _case(name, 17, torch.float64)
    shape = _out_shape(case)
    relaxation = op.relax(*make_boxes(dice, case, "mixed", batch=2))
    for _ in range(4):
        window = random_window(dice, shape[1:])
        part = relaxation.cropped(window)
        if part is None:
            return
        coef = dice.normal(2, 3, shape[0], *window.size)
        whole_coef = window.place(coef, whole(shape[1:]))
        found, wanted = part.pull(coef), relaxation.pull(whole_coef)
        torch.testing.assert_close(window.place(found.coefs[0], whole(shape[1:])), wanted.coefs[0])
        torch.testing.assert_close(found.bias, wanted.bias)
