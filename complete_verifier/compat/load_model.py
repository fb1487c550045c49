"""`from load_model import load_model_onnx, inference_onnx` of a user's module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from auto_LiRPA.graph.module import OnnxModule, load_onnx
from complete_verifier.attack.onnx_network import OnnxNetwork


def load_model_onnx(
    path: str | Path,
    input_shape: Sequence[int] | None = None,
    quirks: Mapping[str, Mapping[str, object]] | None = None,
) -> tuple[OnnxModule, list[int]]:
    """An ONNX file as a torch module, and its input shape with the batch as -1."""
    module = load_onnx(path, input_shape=input_shape, quirks=quirks)
    return module, [-1, *module.graph.input_shape]


def inference_onnx(path: str | Path, x: NDArray[np.floating]) -> list[NDArray[np.floating]]:
    """Outputs of an ONNX file in onnxruntime, for one input."""
    return [OnnxNetwork(path).run(np.asarray(x))]
