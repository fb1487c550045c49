"""A torch module as the judge of counterexamples, where there is no ONNX file."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from auto_LiRPA.errors import ModelError
from auto_LiRPA.parallel.numerics import full_precision

_ELEMENT_TYPES: dict[torch.dtype, np.dtype[np.floating]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
# What a module's own forward may raise for an input that it does not take.
_FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError, ArithmeticError)


class TorchNetwork:
    """A module run one sample at a time, in evaluation mode, in its own dtype and on its own device."""

    def __init__(self, module: nn.Module, input_shape: tuple[int, ...], name: str) -> None:
        """``input_shape``: of one sample. Raises ModelError for numbers that are neither float32 nor float64."""
        first = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), None)
        kind = torch.float32 if first is None else first.dtype
        if kind not in _ELEMENT_TYPES:
            raise ModelError(f"{name}: its numbers are {kind}; use float32 or float64 (module.float())")
        self.name = name
        self.torch_dtype = kind
        self.device = torch.device("cpu") if first is None else first.device
        self.dtype = _ELEMENT_TYPES[kind]
        self._module = module
        self._shape = input_shape

    def run(self, x: NDArray[np.floating]) -> NDArray[np.floating]:
        """Outputs, flattened, for one input in any shape."""
        sample = torch.from_numpy(np.asarray(x).reshape(1, *self._shape).astype(self.dtype)).to(self.device)
        modes = {module: module.training for module in self._module.modules()}
        self._module.eval()
        try:
            with torch.no_grad(), full_precision():
                y = self._module(sample)
        except _FORWARD_ERRORS as error:
            raise ModelError(f"{self.name}: its forward fails: {' '.join(str(error).split())[:300]}") from error
        finally:
            for module, training in modes.items():
                module.training = training
        if not isinstance(y, Tensor):
            raise ModelError(f"{self.name}: its forward returns {type(y).__name__}; a tensor is needed")
        outputs: NDArray[np.floating] = y.detach().reshape(-1).cpu().numpy()
        return outputs
