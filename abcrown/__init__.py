"""Specifications and solving from Python; the command `abcrown` and this package take the same road to a verdict."""

from __future__ import annotations

from abcrown.benchmark import VNNCompBenchmark
from abcrown.command import ABCROWN
from abcrown.configuration import ConfigBuilder, default_config
from abcrown.solver import ABCrownSolver, SolveResult
from abcrown.specification import VerificationSpec, input_vars, output_vars
from auto_LiRPA import load_onnx

__all__ = [
    "ABCROWN",
    "ABCrownSolver",
    "ConfigBuilder",
    "SolveResult",
    "VNNCompBenchmark",
    "VerificationSpec",
    "default_config",
    "input_vars",
    "load_onnx",
    "output_vars",
]
