"""What an operator is: concrete forward, interval rule, backward linear rule, and declared facts (DESIGN 2.1).

Shape letters: B batch elements (or BaB domains), T rows of a tile, N any merged leading axes, ``*in``/``*out`` the
per-sample shapes. No operator knows devices, ranks, graphs or settings. Per-sample shapes never contain the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from auto_LiRPA.parallel.store import Weight
from auto_LiRPA.values import Interval, Window

Support = Literal["exact", "relaxed", "interval only"]


@dataclass(frozen=True, slots=True)
class Pulled:
    """``sum_i coefs[i] . x_i + bias  <=  coef . op(x)`` for every x in the boxes.

    ``coefs[i]`` is ``[B or 1, T, *in_i]``; ``bias`` is ``[B or 1, T]`` or None for zero.
    """

    coefs: tuple[Tensor, ...]
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class LinearBounds:
    """Forward-mode bounds ``lower_w x + lower_b <= value <= upper_w x + upper_b`` over the network's input x.

    ``lower_w``/``upper_w``: ``[B, n_in, *shape]`` (input neuron first), ``lower_b``/``upper_b``: ``[B, *shape]``.
    """

    lower_w: Tensor
    lower_b: Tensor
    upper_w: Tensor
    upper_b: Tensor


@dataclass(frozen=True, slots=True)
class AlphaSpec:
    """Which neurons of a node carry optimisable slopes, and where they start.

    ``index``: flat neurons ``[u]``, the union over the batch. ``initial``: ``[B, P, u]``, P numbers a neuron.
    ``lower``/``upper``: the range that keeps every value sound, broadcastable to ``[B, 1, P, u]``.
    """

    index: Tensor
    initial: Tensor
    lower: Tensor | float
    upper: Tensor | float


@dataclass(frozen=True, slots=True)
class RelaxationGradient:
    """Derivatives of a tile's weighted bounds: by slopes ``[B, T, P, u]`` and by each input's box ``[B, *in_i]``."""

    alpha: Tensor | None
    boxes: tuple[Interval | None, ...]


class Relaxation(ABC):
    """A nonlinear node replaced by linear pieces over given input boxes. Shared by all tiles of a pass."""

    alpha: AlphaSpec | None = None
    # Neurons that carry slopes, fixed by the caller for a whole optimisation (the boxes move, the variables stay).
    pinned: Tensor | None = None

    @abstractmethod
    def pull(self, coef: Tensor, alpha: Tensor | None = None, owned: bool = False) -> Pulled:
        """Bound ``coef . op(x)`` from below by a linear function of the inputs.

        Args:
            coef: ``[B or 1, T, *out]``. May be overwritten if ``owned``.
            alpha: slopes ``[B, T, P, u]`` for the neurons of ``self.alpha.index``; None takes the default lines.
            owned: True if the caller will not look at ``coef`` again and needs no gradient.
        """

    @abstractmethod
    def values(self, coef: Tensor, inputs: tuple[Tensor, ...], alpha: Tensor | None = None) -> Tensor:
        """Output of the relaxed node at ``inputs``, taking for each entry the piece that ``pull(coef)`` took.

        ``inputs[i]``: ``[B, T, *in_i]`` -> ``[B, T, *out]``. It is the derivative of the bound by ``coef``.
        """

    @abstractmethod
    def gradient(
        self,
        coef: Tensor,
        inputs: tuple[Tensor, ...],
        weight: Tensor,
        alpha: Tensor | None = None,
        with_boxes: bool = True,
    ) -> RelaxationGradient:
        """Derivatives of ``sum_t weight[b, t] * bound[b, t]`` by alpha and by the boxes (envelope theorem).

        ``with_boxes`` False: the caller has no use for the derivatives by the boxes, they may be None.
        """

    @abstractmethod
    def push(self, inputs: tuple[LinearBounds, ...]) -> LinearBounds:
        """Forward-mode bounds of the output from those of the inputs."""

    def apart(self) -> tuple[Relaxation, tuple[Tensor, ...]]:
        """A copy for recorded passes, and all tensors that its `pull` without slopes reads, none shared with others.

        `read_by_pull` of another relaxation of the same node gives what to copy into them.
        """
        raise NotImplementedError(type(self).__name__)

    def read_by_pull(self) -> tuple[Tensor, ...]:
        """What `pull` without slopes reads, in the order of `apart`."""
        raise NotImplementedError(type(self).__name__)

    def cropped(self, window: Window) -> Relaxation | None:
        """The relaxation of the neurons in a window of the map alone; None if this kind has no such form."""
        return None


class Operator(ABC):
    """Common face of all operators."""

    linear: ClassVar[bool]
    support: ClassVar[Support] = "exact"
    # True: a backward step through it, without slopes of its own, neither waits for the device nor depends on values
    # in what it does, so that it can be recorded and replayed. A nonlinear one's relaxation has `apart` then.
    recordable: ClassVar[bool] = False

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """Concrete values: ``inputs[i]`` is ``[N, *in_i]`` -> ``[N, *out]``."""

    @abstractmethod
    def interval(self, *inputs: Interval) -> Interval:
        """Smallest interval that this rule can prove around the image of the boxes."""

    def mapped(self, tensor: Callable[[Tensor], Tensor], weight: Callable[[Weight], Weight]) -> Operator:
        """The same operator with every tensor and weight field replaced (device, dtype or store changes)."""
        changes: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changes[item.name] = tensor(value)
            elif isinstance(value, Weight):
                changes[item.name] = weight(value)
        return replace(self, **changes) if changes else self  # type: ignore[type-var]


class LinearOperator(Operator):
    """An affine map: ``op(x) = apply(x) + bias``. Every rule follows from ``apply``, its absolute and its transpose."""

    linear: ClassVar[bool] = True
    nonnegative: ClassVar[bool] = False  # True: apply has no negative entry (copies, sums), so intervals map end to end
    # What the map does to independent neurons: True keeps them independent (a scaling, a permutation), so the
    # interval of the next mixing map is exact and needs no backward pass.
    elementwise: ClassVar[bool] = False

    @abstractmethod
    def apply(self, *inputs: Tensor) -> Tensor:
        """The linear part: ``inputs[i]`` is ``[N, *in_i]`` -> ``[N, *out]``."""

    def apply_abs(self, *inputs: Tensor) -> Tensor:
        """The linear part with every coefficient replaced by its absolute value."""
        if self.nonnegative:
            return self.apply(*inputs)
        raise NotImplementedError(type(self).__name__)

    @abstractmethod
    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        """Coefficients on the inputs: ``[N, *out]`` -> one ``[N, *in_i]`` per input. May alias ``coef``."""

    def transpose_window(self, coef: Tensor, window: Window) -> tuple[tuple[Tensor, Window], ...] | None:
        """`transpose` of coefficients ``[N, channels, *window]`` that are zero outside ``window``.

        Returns each input's coefficients with their window, or None if this map has no such form. A map that has one
        must have a constant term that does not vary over the spatial axes.
        """
        return None

    def bias_values(self) -> Tensor | None:
        """The constant term, broadcastable to ``*out``; None for zero."""
        return None

    def forward(self, *inputs: Tensor) -> Tensor:
        bias = self.bias_values()
        out = self.apply(*inputs)
        return out if bias is None else out + bias

    def interval(self, *inputs: Interval) -> Interval:
        bias = self.bias_values()
        if self.nonnegative:
            lower = self.apply(*(x.lower for x in inputs))
            upper = self.apply(*(x.upper for x in inputs))
        else:
            center, radius = self._center_and_radius(inputs)
            lower, upper = center - radius, center + radius
        return Interval(lower, upper) if bias is None else Interval(lower + bias, upper + bias)

    def bias_dot(self, coef: Tensor) -> Tensor | None:
        """``coef . bias``: ``[N, *out]`` -> ``[N]``; None for zero."""
        bias = self.bias_values()
        if bias is None:
            return None
        return (coef * bias).flatten(1).sum(1)

    def pull(self, coef: Tensor) -> Pulled:
        """Exact backward rule: ``coef`` is ``[B or 1, T, *out]``."""
        merged = coef.flatten(0, 1)
        dot = self.bias_dot(merged)
        coefs = tuple(c.unflatten(0, coef.shape[:2]) for c in self.transpose(merged))
        return Pulled(coefs, None if dot is None else dot.unflatten(0, coef.shape[:2]))

    def pull_window(self, coef: Tensor, window: Window) -> tuple[Pulled, tuple[Window, ...]] | None:
        """`pull` of coefficients ``[B or 1, T, channels, *window]``; None if this map has no such form."""
        merged = coef.flatten(0, 1)
        found = self.transpose_window(merged, window)
        if found is None:
            return None
        dot = self.bias_dot(merged)
        coefs = tuple(c.unflatten(0, coef.shape[:2]) for c, _ in found)
        bias = None if dot is None else dot.unflatten(0, coef.shape[:2])
        return Pulled(coefs, bias), tuple(w for _, w in found)

    def push(self, inputs: tuple[LinearBounds, ...]) -> LinearBounds:
        """Forward mode: the interval rule without bias maps the pair (lower_w, upper_w) as it maps (lower, upper)."""
        batch, width = inputs[0].lower_w.shape[:2]
        pairs = tuple(Interval(x.lower_w.flatten(0, 1), x.upper_w.flatten(0, 1)) for x in inputs)
        slopes = self._signed(pairs)
        offsets = self._signed(tuple(Interval(x.lower_b, x.upper_b) for x in inputs))
        bias = self.bias_values()
        lower_b, upper_b = offsets.lower, offsets.upper
        if bias is not None:
            lower_b, upper_b = lower_b + bias, upper_b + bias
        return LinearBounds(
            slopes.lower.unflatten(0, (batch, width)), lower_b, slopes.upper.unflatten(0, (batch, width)), upper_b
        )

    def _signed(self, pairs: tuple[Interval, ...]) -> Interval:
        """``(W+ lower + W- upper, W+ upper + W- lower)``, also where lower > upper."""
        if self.nonnegative:
            return Interval(self.apply(*(p.lower for p in pairs)), self.apply(*(p.upper for p in pairs)))
        center, radius = self._center_and_radius(pairs)
        return Interval(center - radius, center + radius)

    def _center_and_radius(self, pairs: tuple[Interval, ...]) -> tuple[Tensor, Tensor]:
        """The image's centre and radius, without the constant term."""
        center = self.apply(*((p.lower + p.upper) / 2 for p in pairs))
        return center, self.apply_abs(*((p.upper - p.lower) / 2 for p in pairs))


class NonlinearOperator(Operator):
    """An operator that is bounded by a relaxation over its inputs' boxes."""

    linear: ClassVar[bool] = False
    support: ClassVar[Support] = "relaxed"

    @property
    def partial(self) -> bool:
        """True: not defined for every number, so bounds of its input may never reach beyond what is known of it."""
        return False

    @abstractmethod
    def relax(self, *boxes: Interval) -> Relaxation:
        """Relaxation over the given boxes, one ``[B, *in_i]`` per input."""

    def needs_tightening(self, *boxes: Interval) -> tuple[Tensor, ...]:
        """Per input: which neurons ``[B, *in_i]`` gain from bounds tighter than ``boxes`` (True everywhere is safe)."""
        return tuple(torch.ones_like(box.lower, dtype=torch.bool) for box in boxes)


@dataclass(frozen=True)
class Input(Operator):
    """The network's input: a node without inputs."""

    linear: ClassVar[bool] = True

    def forward(self, *inputs: Tensor) -> Tensor:
        raise NotImplementedError("the input has no rule of its own")

    def interval(self, *inputs: Interval) -> Interval:
        raise NotImplementedError("the input has no rule of its own")


def rows_dot(coef: Tensor, vector: Tensor) -> Tensor:
    """``[B or 1, T, n] . [B or 1, n] -> [B, T]``; one plain matrix product where either side is shared by the batch."""
    if coef.shape[0] == 1:
        return (coef[0] @ vector.T).T
    if vector.shape[0] == 1:
        return coef @ vector[0]
    return torch.bmm(coef, vector.unsqueeze(-1)).squeeze(-1)
