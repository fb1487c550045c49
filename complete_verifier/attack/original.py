"""The network as its owner runs it: the judge of every counterexample."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class OriginalNetwork(Protocol):
    """What `confirm` asks of a network: an ONNX file (`OnnxNetwork`) or a torch module (`TorchNetwork`)."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The element type of its input: a printed number counts as what it is cast to."""
        ...

    def run(self, x: NDArray[np.floating]) -> NDArray[np.floating]:
        """Outputs, flattened, for one input in any shape. Raises ModelError where the network refuses it."""
        ...
