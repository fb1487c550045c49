"""Ranks of a program that calls the verifier from Python, for the tests of what it may count on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch.onnx  # noqa: F401 (of modules' export, once for all ranks)

from abcrown import ABCROWN, ABCrownSolver, VerificationSpec, input_vars, output_vars
from auto_LiRPA.errors import ConfigError, WorkerFailed
from tests.nets import dense_layers, mlp

_SETTINGS = {
    "general": {"device": "cpu"},
    "parallel": {"mode": "single", "rows": "shard", "threads": 1, "timeout_s": 30},
    "attack": {"pgd_order": "skip"},
}


def programs(case: dict[str, Any]) -> dict[str, Any]:
    """What every program of ``case`` gave on this rank: its value, or the kind of error and its line."""
    rank = os.environ.get("RANK", "0")
    found: dict[str, Any] = {}
    for name, words in case["commands"].items():
        results = Path(case["folder"], f"{name}-{rank}.txt")
        try:
            found[name] = ABCROWN([*words, "--results_file", str(results), "--quiet"]).main()
        except (ConfigError, WorkerFailed) as error:
            found[name] = (type(error).__name__, str(error))
    for name, differs in (("solver", False), ("other network", True)):
        try:
            found[name] = _solved(differs)
        except WorkerFailed as error:
            found[name] = (type(error).__name__, str(error))
    return found


def _solved(differs: bool) -> tuple[Any, ...]:
    net = mlp(dense_layers([3, 8, 2], int(os.environ.get("RANK", "0")) if differs else 0, torch.float32))
    x, y = input_vars(3), output_vars(2)
    spec = VerificationSpec.build_spec(
        input_vars=x, output_vars=y, input_constraint=(x >= np.full(3, -1.0)) & (x <= np.ones(3)),
        output_constraint=y[0] > -50.0,
    )  # fmt: skip
    result = ABCrownSolver(spec, net, _SETTINGS).solve()
    bounds = {name: (low.tolist(), up.tolist()) for name, (low, up) in result.reference.items()}
    return result.verdict, result.status, bounds, len(result.stats["ranks"])
