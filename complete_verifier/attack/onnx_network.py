"""The original ONNX file as onnxruntime runs it: the judge of every counterexample."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from auto_LiRPA.errors import ModelError
from complete_verifier.attack.original import OriginalNetwork

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_ELEMENT_TYPES: dict[str, np.dtype[np.floating]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
}
_ERRORS_ONLY = 3


class OnnxNetwork:
    """An ONNX file (plain or gzip) in an onnxruntime session: CPU, one thread, the graph run as it was written."""

    def __init__(self, path: str | Path) -> None:
        """Raises ModelError if the file is missing or onnxruntime cannot load it."""
        self.path = Path(path)
        self._session = _open(self.path)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise ModelError(f"{self.path}: {len(inputs)} inputs; a network with one input is needed")
        if inputs[0].type not in _ELEMENT_TYPES:
            raise ModelError(f"{self.path}: input {inputs[0].name} has type {inputs[0].type}; floats are needed")
        self._name = inputs[0].name
        self._shape: list[int | str | None] = inputs[0].shape
        self._output = self._session.get_outputs()[0].name
        self.dtype: np.dtype[np.floating] = _ELEMENT_TYPES[inputs[0].type]

    @property
    def name(self) -> str:
        """What messages call it: its path."""
        return str(self.path)

    def run(self, x: NDArray[np.floating]) -> NDArray[np.floating]:
        """Outputs, flattened, for one input in any shape. A file with a larger frozen batch gets copies of it."""
        flat = np.asarray(x).reshape(-1).astype(self.dtype)
        shape, copies = _shape_for(self._shape, flat.size)
        if copies == 0:
            raise ModelError(f"{self.path}: the input shape {self._shape} does not take {flat.size} numbers")
        try:
            (y,) = self._session.run([self._output], {self._name: np.tile(flat, copies).reshape(shape)})
        except _runtime_errors() as error:
            raise ModelError(f"{self.path}: onnxruntime cannot run it: {_one_line(error)}") from error
        outputs: NDArray[np.floating] = np.asarray(y).reshape(-1)
        return outputs[: outputs.size // copies]


def opened(network: str | Path | OriginalNetwork) -> OriginalNetwork:
    """The network itself, or a session of the file that is named."""
    return OnnxNetwork(network) if isinstance(network, str | Path) else network


def _open(path: Path) -> InferenceSession:
    import onnxruntime  # slow to import: only when there is something to confirm

    if not path.is_file():
        raise ModelError(f"{path}: no such file; check the path of the network")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # A plain file goes by its path, so that weights in files beside it are found.
    try:
        source = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else str(path)
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except _loading_errors() as error:
        raise ModelError(f"{path}: onnxruntime cannot load it: {_one_line(error)}") from error


def _runtime_errors() -> tuple[type[Exception], ...]:
    """onnxruntime's exception classes; they share no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))


def _loading_errors() -> tuple[type[Exception], ...]:
    return (*_runtime_errors(), OSError, EOFError, zlib.error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _shape_for(declared: Sequence[int | str | None], size: int) -> tuple[tuple[int, ...], int]:
    """The shape in which to feed ``size`` numbers, and how many copies of them it holds (0: they don't fit).

    Axes of unknown length are 1, but for the last one if more numbers have to go somewhere.
    """
    if not declared:
        return ((), 1) if size == 1 else ((1, size), 1)
    shape = [length if isinstance(length, int) and length > 0 else 1 for length in declared]
    open_axes = [axis for axis, length in enumerate(declared) if not isinstance(length, int) or length <= 0]
    known = int(np.prod(shape))
    if open_axes:
        shape[open_axes[-1]] = max(1, size // known)
        return tuple(shape), int(np.prod(shape) == size)
    return tuple(shape), known // size if size and known % size == 0 else 0
