"""Random networks and properties whose verdict a mixed-integer program knows, written in symbols and as text."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_

import numpy as np
import onnx
import torch
from torch import nn

from abcrown import ConfigBuilder, VerificationSpec, input_vars, output_vars
from abcrown.language.expressions import Expression
from abcrown.language.formulas import Formula
from auto_LiRPA.graph.ir import Graph
from tests.end_to_end.runs import mlp_model
from tests.milp import worst_violation
from tests.nets import Dense, dense_layers, mlp

N_IN, N_OUT = 3, 3
MARGIN = 0.02  # by which a property is kept or missed

Row = tuple[np.ndarray, float]  # c, rhs: the property wants c . y > rhs


def quick() -> ConfigBuilder:
    """Settings of the tests: one thread, a short attack."""
    builder = ConfigBuilder.from_defaults()
    return builder.set(general__device="cpu", parallel__threads=1, bab__timeout=60, attack__pgd_restarts=20)


@dataclass(frozen=True)
class Known:
    """A property that is a conjunction of disjunctions of rows, over one or two boxes. ``holds``: the MILP's word."""

    layers: list[Dense]
    boxes: list[tuple[np.ndarray, np.ndarray]]
    conjuncts: list[list[Row]]
    holds: bool
    seed: int

    @classmethod
    def make(cls, seed: int) -> Known:
        layers = dense_layers([N_IN, 7, 7, N_OUT], seed, torch.float32)
        rng = np.random.default_rng(seed)
        boxes = []
        for _ in range(1 + seed % 2):
            center, radius = rng.normal(size=N_IN), 0.2 + rng.random(N_IN)
            boxes.append(((center - radius).astype(np.float32), (center + radius).astype(np.float32)))
        holds = bool(rng.random() < 0.5)
        plain = [(layer.weight.double().numpy(), layer.bias.double().numpy()) for layer in layers]
        conjuncts: list[list[Row]] = []
        for number in range(1 + seed % 3):
            rows = [np.round(rng.normal(size=N_OUT), 2) for _ in range(1 + (seed + number) % 2)]
            c, rhs = np.stack(rows), rng.normal(size=len(rows))
            ends = [(lo.astype(np.float64), hi.astype(np.float64)) for lo, hi in boxes]
            worst = min(worst_violation(plain, lo, hi, c, rhs) for lo, hi in ends)
            missed = not holds and number == 0
            moved = rhs + worst + (MARGIN if missed else -MARGIN)
            conjuncts.append([(row, float(r)) for row, r in zip(rows, moved, strict=True)])
        return cls(layers, boxes, conjuncts, holds, seed)

    @property
    def graph(self) -> Graph:
        return mlp(self.layers)

    @property
    def onnx(self) -> onnx.ModelProto:
        return mlp_model(self.layers)

    @property
    def module(self) -> nn.Module:
        return module_of(self.layers)

    def spec(self) -> VerificationSpec:
        """In symbols, in one of several ways to write it."""
        x, y, chance = input_vars(N_IN), output_vars(N_OUT), random.Random(self.seed)
        boxes = reduce(or_, ((x >= lo) & (torch.from_numpy(hi) >= x) for lo, hi in self.boxes))
        wanted = reduce(and_, (reduce(or_, (_written(y, row, chance) for row in rows)) for rows in self.conjuncts))
        return VerificationSpec.build_spec(x, y, boxes, wanted)

    def text(self) -> str:
        """As VNN-LIB, by hand: some box, and some conjunct none of whose rows holds."""
        lines = [f"(declare-const {n}_{i} Real)" for n, size in (("X", N_IN), ("Y", N_OUT)) for i in range(size)]
        cases = []
        for lo, hi in self.boxes:
            box = [f"(>= X_{i} {float(v)!r})" for i, v in enumerate(lo)]
            box += [f"(<= X_{i} {float(v)!r})" for i, v in enumerate(hi)]
            for rows in self.conjuncts:
                sums = (" ".join(f"(* {float(k)!r} Y_{j})" for j, k in enumerate(c)) for c, _ in rows)
                broken = [f"(<= (+ {total}) {r!r})" for total, (_, r) in zip(sums, rows, strict=True)]
                cases.append(f"(and {' '.join([*box, *broken])})")
        return "\n".join([*lines, f"(assert (or {' '.join(cases)}))"]) + "\n"

    def violated(self, x: np.ndarray, y: np.ndarray) -> bool:
        """Whether x with the outputs y is a counterexample, in float64."""
        point = x.astype(np.float64)
        inside = any((lo <= point).all() and (point <= hi).all() for lo, hi in self.boxes)
        return inside and any(all(c @ y.astype(np.float64) <= r + 1e-9 for c, r in rows) for rows in self.conjuncts)


def _written(y: Expression, row: Row, chance: random.Random) -> Formula:
    c, rhs = row
    match chance.randrange(4):
        case 0:
            return c @ y > rhs
        case 1:
            return rhs < sum((float(k) * y[j] for j, k in enumerate(c)), 0 * y[0])
        case 2:
            return float(c[0]) * y[0] - rhs > -(torch.from_numpy(c[1:]) @ y[1:])
        case _:
            return ~((2 * (y @ c) - rhs) / 2 <= rhs / 2)


def module_of(layers: list[Dense]) -> nn.Sequential:
    """The dense layers as a module that shares nothing with ours."""
    parts: list[nn.Module] = []
    for i, layer in enumerate(layers):
        linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[0], dtype=layer.weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(layer.weight)
            linear.bias.copy_(layer.bias)
        parts += [linear, nn.ReLU()] if i + 1 < len(layers) else [linear]
    return nn.Sequential(*parts)
