"""One or more random instances of every operator class, boxes for them, and points inside the boxes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.arithmetic import Add, Affine, Sub
from auto_LiRPA.operators.base import Operator
from auto_LiRPA.operators.bilinear import MatMul, Mul
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.exponential import Exp, Reciprocal
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.piecewise import Abs, Clip, Sign
from auto_LiRPA.operators.placed import PlacedAffine
from auto_LiRPA.operators.pooling import AveragePool, MaxPool
from auto_LiRPA.operators.reduce import ReduceMean, ReduceSum
from auto_LiRPA.operators.shape import Concat, Cut, Expand, PadConstant, Reshape, Select, Transpose
from auto_LiRPA.operators.smooth import Power, Sigmoid, Tanh
from auto_LiRPA.operators.softmax import Differences, PairSoftmax, Softmax, pair_count
from auto_LiRPA.parallel.store import LocalWeight, Weight
from auto_LiRPA.values import Interval, Window

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """An operator with the shapes of its inputs, the points where it changes, and the least input that it takes."""

    op: Operator
    shapes: tuple[Shape, ...]
    kinks: tuple[float, ...] = (0.0,)
    least: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Dice:
    """Randomness of one case: geometry, and tensors of one dtype."""

    seed: int
    dtype: torch.dtype
    geometry: random.Random = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "geometry", random.Random(self.seed))
        object.__setattr__(self, "generator", torch.Generator().manual_seed(self.seed))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def pick(self, low: int, high: int) -> int:
        return self.geometry.randint(low, high)

    def weight(self, *shape: int) -> Weight:
        """A weight in blocks of one to four rows, so that most layers have several."""
        return LocalWeight(self.normal(*shape), self.pick(1, 4))

    def maybe(self, tensor: Tensor) -> Tensor | None:
        return tensor if self.pick(0, 1) else None


def _linear(d: Dice) -> Case:
    rows, columns = d.pick(1, 7), d.pick(1, 6)
    lead = (d.pick(1, 3),) if d.pick(0, 1) else ()
    return Case(Linear(d.weight(rows, columns), d.maybe(d.normal(rows))), ((*lead, columns),))


def _placed(d: Dice) -> Case:
    shape = tuple(d.pick(1, 6) for _ in range(d.pick(1, 3)))
    scale, shift = (d.weight(*shape) if d.pick(0, 1) else None for _ in range(2))
    return Case(PlacedAffine(scale, shift), (shape,))


def _conv(axes: int, groups: int) -> Callable[[Dice], Case]:
    def make(d: Dice) -> Case:
        per_in, per_out = d.pick(1, 2), d.pick(1, 3)
        kernel = tuple(d.pick(1, 3) for _ in range(axes))
        stride = tuple(d.pick(1, 3) for _ in range(axes))
        dilation = tuple(d.pick(1, 2) for _ in range(axes))
        padding = tuple(d.pick(0, 3) for _ in range(axes))
        room = tuple(max(1, q * (k - 1) + 1 - 2 * p) for q, k, p in zip(dilation, kernel, padding, strict=True))
        shape = (per_in * groups, *(r + d.pick(0, 3) for r in room))
        weight = d.weight(per_out * groups, per_in, *kernel)
        bias = d.maybe(d.normal(per_out * groups))
        return Case(Conv(weight, bias, stride, padding, dilation, groups, shape), (shape,))

    return make


def _geometry(d: Dice, axes: int, dilated: bool) -> dict[str, tuple[int, ...]]:
    """Windows that each hold at least one input entry; the last one may reach over the far end (ceil mode)."""
    found: list[tuple[int, ...]] = []
    for _ in range(axes):
        k, s, q = d.pick(1, 4), d.pick(1, 3), d.pick(1, 2) if dilated else 1
        reach = q * (k - 1)
        n = reach + d.pick(1, 5 if axes == 1 else 3)
        before, after = d.pick(0, k // 2), d.pick(0, k // 2)
        out = (n + before + after - reach - 1) // s + 1
        ceil = (n + before + after - reach - 1) % s != 0 and out * s < n + before
        found.append((k, s, q, n, before, after, out + (1 if ceil and d.pick(0, 3) else 0)))
    names = ("kernel", "stride", "dilation", "size", "before", "after", "out")
    return dict(zip(names, zip(*found, strict=True), strict=True))


def _average(axes: int) -> Callable[[Dice], Case]:
    def make(d: Dice) -> Case:
        g, channels = _geometry(d, axes, dilated=False), d.pick(1, 2)
        shape, out = (channels, *g["size"]), (channels, *g["out"])
        pads = (g["before"], g["after"])
        return Case(AveragePool(g["kernel"], g["stride"], pads, True, bool(d.pick(0, 1)), shape, out), (shape,))

    return make


def _max(axes: int) -> Callable[[Dice], Case]:
    def make(d: Dice) -> Case:
        g, channels = _geometry(d, axes, dilated=True), d.pick(1, 2)
        shape, out = (channels, *g["size"]), (channels, *g["out"])
        pads = (g["before"], g["after"])
        return Case(MaxPool(g["kernel"], g["stride"], pads, g["dilation"], True, shape, out), (shape,))

    return make


def _shape(d: Dice, least: int = 1) -> Shape:
    return tuple(d.pick(least, 4) for _ in range(d.pick(1, 3)))


def _reduce(kind: type[ReduceSum]) -> Callable[[Dice], Case]:
    def make(d: Dice) -> Case:
        shape = _shape(d)
        axes = tuple(sorted(d.geometry.sample(range(len(shape)), d.pick(1, len(shape)))))
        keep = bool(d.pick(0, 1)) or len(axes) == len(shape)
        if d.pick(0, 1):
            axes = tuple(a - len(shape) for a in axes)
        return Case(kind(axes, keep, shape), (shape,))

    return make


def _affine(d: Dice) -> Case:
    shape = _shape(d)
    some = tuple(n if d.pick(0, 1) else 1 for n in shape)
    return Case(Affine(d.maybe(d.normal(*some)), d.maybe(d.normal(*shape))), (shape,))


def _two(op: Operator) -> Callable[[Dice], Case]:
    def make(d: Dice) -> Case:
        shape = _shape(d)
        return Case(op, (shape, shape))

    return make


def _matmul(d: Dice) -> Case:
    lead = (d.pick(1, 3),) if d.pick(0, 1) else ()
    n, k, m = d.pick(1, 4), d.pick(1, 4), d.pick(1, 4)
    return Case(MatMul(), ((*lead, n, k), (*lead, k, m)))


def _softmax(d: Dice) -> Case:
    shape = _shape(d)
    return Case(Softmax(shape[-1]), (shape,), scale=2.0)


def _pair_softmax(d: Dice) -> Case:
    # with more than two entries not every value of the pairs is one of differences: test_softmax.py
    lead = (d.pick(1, 3),) if d.pick(0, 1) else ()
    return Case(PairSoftmax(2), ((*lead, pair_count(2)),), scale=2.0)


def _differences(d: Dice) -> Case:
    shape = _shape(d, 2)
    return Case(Differences(shape[-1]), (shape,))


def _reshape(d: Dice) -> Case:
    a, b, c = d.pick(1, 3), d.pick(1, 3), d.pick(1, 3)
    return Case(Reshape((a, b * c), (c, b, a)), ((a, b * c),))


def _transpose(d: Dice) -> Case:
    shape = _shape(d)
    return Case(Transpose(tuple(d.geometry.sample(range(len(shape)), len(shape)))), (shape,))


def _select(d: Dice) -> Case:
    shape = _shape(d)
    axis = d.pick(0, len(shape) - 1)
    index = torch.tensor([d.pick(0, shape[axis] - 1) for _ in range(d.pick(1, 5))])
    return Case(Select(axis, index, shape), (shape,))


def _cut(d: Dice) -> Case:
    shape = _shape(d)
    axis = d.pick(0, len(shape) - 1)
    start = d.pick(0, shape[axis] - 1)
    return Case(Cut(axis, start, d.pick(start + 1, shape[axis]), shape), (shape,))


def _concat(d: Dice) -> Case:
    shape = _shape(d)
    axis, sizes = d.pick(0, len(shape) - 1), tuple(d.pick(1, 3) for _ in range(d.pick(1, 3)))
    return Case(Concat(axis, sizes), tuple((*shape[:axis], n, *shape[axis + 1 :]) for n in sizes))


def _pad(d: Dice) -> Case:
    shape = _shape(d)
    before, after = tuple(d.pick(0, 2) for _ in shape), tuple(d.pick(0, 2) for _ in shape)
    inner = PadConstant(before, after, None)
    ring = 1 - inner.apply(torch.ones(1, *shape, dtype=d.dtype))[0]
    return Case(PadConstant(before, after, d.maybe(ring * d.normal(*ring.shape))), (shape,))


def _expand(d: Dice) -> Case:
    out = _shape(d)
    shape = tuple(1 if d.pick(0, 1) else n for n in out)
    return Case(Expand(shape, out), (shape,))


def _scalar(op: Operator, kinks: tuple[float, ...] = (0.0,), **facts: float) -> Callable[[Dice], Case]:
    return lambda d: Case(op, (_shape(d),), kinks, **facts)


def _clip(d: Dice) -> Case:
    low, high = d.geometry.choice(
        ((-1.0, 0.5), (0.0, 6.0), (0.25, 0.25), (-1.0, float("inf")), (None, 0.5), (-1, None))
    )
    return Case(Clip(low, high), (_shape(d),), tuple(x for x in (low, high, 0.0) if x is not None and abs(x) < 9))


CASES: dict[str, Callable[[Dice], Case]] = {
    "Linear": _linear,
    "Conv 1d": _conv(1, 1),
    "Conv 2d": _conv(2, 1),
    "Conv 1d, 3 groups": _conv(1, 3),
    "Conv 2d, 2 groups": _conv(2, 2),
    "AveragePool 1d": _average(1),
    "AveragePool 2d": _average(2),
    "ReduceSum": _reduce(ReduceSum),
    "ReduceMean": _reduce(ReduceMean),
    "Affine": _affine,
    "PlacedAffine": _placed,
    "Add": _two(Add()),
    "Sub": _two(Sub()),
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Select": _select,
    "Cut": _cut,
    "Concat": _concat,
    "PadConstant": _pad,
    "Expand": _expand,
    "Relu": _scalar(Relu()),
    "Relu same-slope": _scalar(Relu(slope_rule="same-slope")),
    "LeakyRelu": _scalar(Relu(0.1)),
    "LeakyRelu one-lb": _scalar(Relu(0.5, "one-lb")),
    "Abs": _scalar(Abs()),
    "Sign": _scalar(Sign()),
    "Clip": _clip,
    "Sigmoid": _scalar(Sigmoid(), scale=3.0),
    "Tanh": _scalar(Tanh(), scale=2.0),
    "Power 0": _scalar(Power(0.0)),
    "Power 1": _scalar(Power(1.0)),
    "Power 2": _scalar(Power(2.0)),
    "Power 3": _scalar(Power(3.0)),
    "Power 4": _scalar(Power(4.0)),
    "Power 7": _scalar(Power(7.0)),
    "Power 1/2": _scalar(Power(0.5), (0.0, 1.0), least=0.0),
    "Power 2.5": _scalar(Power(2.5), (0.0, 1.0), least=0.0),
    "Power -1": _scalar(Power(-1.0), (0.125,), least=0.125),
    "Power -1.5": _scalar(Power(-1.5), (0.125,), least=0.125),
    "Exp": _scalar(Exp()),
    "Reciprocal": _scalar(Reciprocal(), (0.125,), least=0.125),
    "Mul": _two(Mul()),
    "MatMul": _matmul,
    "Differences": _differences,
    "PairSoftmax": _pair_softmax,
    "Softmax": _softmax,
    "MaxPool 1d": _max(1),
    "MaxPool 2d": _max(2),
}

BOX_KINDS = ("plain", "touching", "point", "tiny", "wide", "mixed")


def make_boxes(d: Dice, case: Case, kind: str, batch: int) -> tuple[Interval, ...]:
    """Random boxes ``[batch, *shape]`` per input, of one kind (``mixed``: each neuron its own)."""
    return tuple(_box(d, case, kind, (batch, *shape)) for shape in case.shapes)


def _box(d: Dice, case: Case, kind: str, shape: Shape) -> Interval:
    if kind == "mixed":
        parts = [_box(d, case, k, shape) for k in BOX_KINDS if k != "mixed"]
        choice = torch.randint(len(parts), shape, generator=d.generator)
        lower, upper = (torch.stack([getattr(p, s) for p in parts]) for s in ("lower", "upper"))
        return Interval(lower.gather(0, choice[None])[0], upper.gather(0, choice[None])[0])
    center = d.normal(*shape) * case.scale
    width = {"plain": 1.0, "touching": 1.0, "point": 0.0, "tiny": 1e-5, "wide": 30.0}[kind] * case.scale
    radius = d.uniform(*shape) * width
    if kind == "tiny":
        center = center * 1e-4
    if kind == "wide":
        center = center * 10
    lower, upper = center - radius, center + radius
    if kind == "touching":
        kinks = torch.tensor(case.kinks, dtype=d.dtype)
        kink = kinks[torch.randint(len(kinks), shape, generator=d.generator)]
        side = torch.randint(3, shape, generator=d.generator)
        lower = torch.where(side == 1, kink - 2 * radius, kink)
        upper = torch.where(side == 0, kink + 2 * radius, kink)
    if case.least is not None:
        lift = (case.least - lower).clamp_min(0)
        lower, upper = (lower + lift).clamp_min(case.least), (upper + lift).clamp_min(case.least)
    return Interval(lower, upper)


def points(d: Dice, boxes: tuple[Interval, ...], kinks: tuple[float, ...], count: int) -> Iterator[tuple[Tensor, ...]]:
    """Points of the boxes: the ends and the middle, kinks that lie inside, corners and random interior points."""
    for share in (0.0, 1.0, 0.5):
        yield tuple(_between(b, torch.full_like(b.lower, share)) for b in boxes)
    for kink in kinks:
        for nudge in (0.0, 1e-3, -1e-3):
            yield tuple(
                torch.minimum(torch.full_like(b.lower, kink + nudge).clamp_min(b.lower), b.upper) for b in boxes
            )
    for i in range(count):
        shares = (d.uniform(*b.lower.shape) for b in boxes)
        yield tuple(_between(b, s.round() if i % 2 else s) for b, s in zip(boxes, shares, strict=True))


def _between(box: Interval, share: Tensor) -> Tensor:
    x = box.lower + share * (box.upper - box.lower)
    return torch.minimum(torch.maximum(x, box.lower), box.upper)


def random_window(d: Dice, spatial: Shape) -> Window:
    """A non-empty part of a map; of a value without spatial axes, the empty tuple of axes."""
    start = tuple(d.pick(0, n - 1) for n in spatial)
    return Window(start, tuple(d.pick(a + 1, n) for a, n in zip(start, spatial, strict=True)))


def in_float64(op: Operator) -> Operator:
    """The same operator computing in float64 (from its float32 constants)."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    return op.mapped(convert, lambda w: LocalWeight(torch.cat([b.data for b in w.blocks()]).double(), 3))
