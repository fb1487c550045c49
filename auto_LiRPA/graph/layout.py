"""What an ONNX value is to the reader: a constant, or an activation with the place of its batch axis.

The graph's shapes are per sample. ONNX values carry the batch as one of their axes, usually axis 0, sometimes moved by
a Transpose, sometimes none at all. An `Activation` ties the two together, so that every ONNX axis number can be
translated and every operation that would mix samples is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Unread:
    """Numbers that nobody has looked at yet: which initialiser they are, and how errors call it."""

    initializer: str
    place: str


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that does not depend on the input.

    ``source`` names the module parameter that the tensor is (a view of): its later changes have to be seen. None for
    plain numbers. ``unread``: the tensor (a mapped file, or a module's own) has not been checked, nor is it in the
    run's element type and place yet; the store does that when it is placed.
    """

    tensor: Tensor
    name: str
    source: str | None = None
    unread: Unread | None = None


@dataclass(frozen=True, slots=True)
class Activation:
    """A value that depends on the input: node ``node`` with per-sample ``shape``.

    ``batch``: position of the batch axis among the ONNX axes; None where the ONNX value has no batch axis.
    ``folded``: the batch is multiplied into ONNX axis 0 (``[N * m, ...]``, from a Reshape); ``shape[0]`` is m and
    ``batch`` is None.
    """

    node: int
    shape: tuple[int, ...]
    batch: int | None
    folded: bool = False

    @property
    def rank(self) -> int:
        """Number of ONNX axes."""
        return len(self.shape) + (self.batch is not None)

    def onnx_shape(self, batch_size: int) -> tuple[int, ...]:
        """Shape of the ONNX value when the batch has ``batch_size`` samples."""
        if self.batch is None:
            return self.shape
        return (*self.shape[: self.batch], batch_size, *self.shape[self.batch :])

    def sample_axis(self, axis: int) -> int | None:
        """The per-sample axis behind ONNX axis ``axis`` (already counted from 0); None for the batch axis."""
        if self.batch is None or axis < self.batch:
            return axis
        return None if axis == self.batch else axis - 1

    def at(self, node: int, shape: tuple[int, ...]) -> Activation:
        """The same layout at another node."""
        return replace(self, node=node, shape=shape)


Value = Constant | Activation
