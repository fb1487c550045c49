"""Networks and properties as files, and runs of the command line over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from complete_verifier.__main__ import main
from tests.graph.single import model, node
from tests.milp import worst_violation
from tests.nets import Dense, dense_layers, run_mlp

Rows = Sequence[tuple[Sequence[float], float]]  # (c, rhs): a counterexample has c . y <= rhs on all rows

# A machine that runs many tests at once slows two threads down more than one.
COMMON = ("--device", "cpu", "--parallel_threads", "1")


def mlp_model(layers: Sequence[Dense]) -> onnx.ModelProto:
    """Dense layers with ReLUs between them, as ONNX."""
    constants: dict[str, np.ndarray] = {}
    nodes, at = [], "x"
    for i, layer in enumerate(layers):
        constants[f"w{i}"] = layer.weight.float().numpy()
        constants[f"b{i}"] = layer.bias.float().numpy()
        last = i + 1 == len(layers)
        nodes.append(node("Gemm", f"{at} w{i} b{i}", "y" if last else f"z{i}", transB=1))
        at = f"z{i}"
        if not last:
            nodes.append(node("Relu", at, f"a{i}"))
            at = f"a{i}"
    return model(nodes, ["N", layers[0].weight.shape[1]], constants)


def property_text(lower: np.ndarray, upper: np.ndarray, n_out: int, clauses: Sequence[Rows]) -> str:
    """VNN-LIB: one box, any of the clauses is a counterexample."""
    lines = [f"(declare-const X_{i} Real)" for i in range(len(lower))]
    lines += [f"(declare-const Y_{i} Real)" for i in range(n_out)]
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        lines += [f"(assert (>= X_{i} {float(low):.9f}))", f"(assert (<= X_{i} {float(high):.9f}))"]
    cases = []
    for rows in clauses:
        terms = [f"(<= {_sum(c)} {float(rhs):.9f})" for c, rhs in rows]
        cases.append(f"(and {' '.join(terms)})")
    lines.append(f"(assert (or {' '.join(cases)}))")
    return "\n".join(lines) + "\n"


def _sum(c: Sequence[float]) -> str:
    parts = [f"(* {float(v):.9f} Y_{i})" for i, v in enumerate(c) if v]
    return parts[0] if len(parts) == 1 else f"(+ {' '.join(parts)})"


@dataclass(frozen=True)
class Hard:
    """A random network and a row whose least value is known exactly (by MILP): ``margin`` moves the threshold."""

    layers: list[Dense]
    lower: np.ndarray
    upper: np.ndarray
    least: float

    @classmethod
    def make(cls, sizes: list[int], seed: int, radius: float = 1.0) -> Hard:
        layers = dense_layers(sizes, seed)
        lower, upper = np.full(sizes[0], -radius), np.full(sizes[0], radius)
        plain = [(layer.weight.float().double().numpy(), layer.bias.float().double().numpy()) for layer in layers]
        least = worst_violation(plain, lower, upper, np.eye(1, sizes[-1]), np.zeros(1))
        return cls(layers, lower, upper, least)

    def write(self, folder: Path, margin: float) -> tuple[str, str]:
        """Network and property ``Y_0 <= least + margin``: no counterexample where ``margin`` is negative."""
        return write(folder, mlp_model(self.layers), self.text(margin))

    def text(self, margin: float) -> str:
        n_out = len(self.layers[-1].bias)
        return property_text(self.lower, self.upper, n_out, [[(np.eye(1, n_out)[0].tolist(), self.least + margin)]])


def hopeless(folder: Path) -> tuple[str, str]:
    """A network and a threshold just below what sampling finds: neither bounds nor minutes of search settle it."""
    layers = dense_layers([8, 64, 64, 1], 1)
    value = 6 * torch.rand(20_000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 3
    value = run_mlp(layers)(value)
    ends = np.full(8, 3.0)
    return write(folder, mlp_model(layers), property_text(-ends, ends, 1, [[([1.0], float(value.min()) - 0.01)]]))


def write(folder: Path, network: onnx.ModelProto, text: str) -> tuple[str, str]:
    """Both files; returns their paths."""
    onnx.save(network, folder / "net.onnx")
    (folder / "prop.vnnlib").write_text(text)
    return str(folder / "net.onnx"), str(folder / "prop.vnnlib")


@dataclass(frozen=True)
class Run:
    """What one run left behind."""

    code: int
    out: str
    err: str
    results: str | None
    stats: dict[str, object]

    @property
    def word(self) -> str | None:
        return None if self.results is None else self.results.split("\n")[0]


def run(capsys: pytest.CaptureFixture[str], folder: Path, files: tuple[str, str], *flags: str) -> Run:
    """One instance, in this process."""
    network, specification = files
    results, stats = folder / "results.txt", folder / "stats.json"
    stats.unlink(missing_ok=True)
    capsys.readouterr()
    words = ["--onnx_path", network, "--vnnlib_path", specification, "--results_file", str(results)]
    code = main([*words, "--stats_file", str(stats), *COMMON, *flags])
    printed = capsys.readouterr()
    return Run(
        code,
        printed.out,
        printed.err,
        results.read_text() if results.exists() else None,
        json.loads(stats.read_text()) if stats.exists() else {},
    )
