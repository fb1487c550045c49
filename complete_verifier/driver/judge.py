"""The judge of a run's candidates: the original network, opened once, when the first of them comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from complete_verifier.attack.onnx_network import opened
from complete_verifier.attack.original import OriginalNetwork


class Judge:
    """An `OriginalNetwork` that stands for another one, or for a file that is not opened before it is needed."""

    def __init__(self, source: Path | OriginalNetwork) -> None:
        self._source = source
        self._opened: OriginalNetwork | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self._source) if isinstance(self._source, Path) else self._source.name

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The element type of its input."""
        return self._network().dtype

    def run(self, x: NDArray[np.floating]) -> NDArray[np.floating]:
        """Outputs, flattened, for one input. Raises ModelError where the file cannot be opened or run."""
        return self._network().run(x)

    def _network(self) -> OriginalNetwork:
        if self._opened is None:
            self._opened = opened(self._source)
        return self._opened
