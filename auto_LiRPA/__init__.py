"""Sound bounds of neural networks."""

from __future__ import annotations

from auto_LiRPA.bounded_module import BoundedModule
from auto_LiRPA.bounded_tensor import BoundedParameter, BoundedTensor
from auto_LiRPA.graph.module import load_onnx
from auto_LiRPA.graph.registry import register_custom_op, unregister_custom_op
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.perturbations import (
    PerturbationL0Norm,
    PerturbationLinear,
    PerturbationLpNorm,
    PerturbationSynonym,
)
from auto_LiRPA.wrappers import BoundDataParallel, CrossEntropyWrapper, CrossEntropyWrapperMultiInput

__version__ = "0.1.0"

__all__ = [
    "BoundDataParallel",
    "BoundedModule",
    "BoundedParameter",
    "BoundedTensor",
    "CrossEntropyWrapper",
    "CrossEntropyWrapperMultiInput",
    "DistributedContext",
    "ParallelSettings",
    "PerturbationL0Norm",
    "PerturbationLinear",
    "PerturbationLpNorm",
    "PerturbationSynonym",
    "__version__",
    "load_onnx",
    "register_custom_op",
    "unregister_custom_op",
]
