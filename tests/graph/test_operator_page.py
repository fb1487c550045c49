"""docs/operators.md is up to date, and what it says of each operator is what reading a network gives."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import auto_LiRPA.operators
from auto_LiRPA.graph.builders import BUILDERS
from auto_LiRPA.graph.operator_page import PAGE, all_operators, has_slopes, operators_of, operators_page, write_page
from auto_LiRPA.operators.base import Input, NonlinearOperator, Operator
from auto_LiRPA.operators.parallel_maps import ColumnLinear, Enter, Exit
from auto_LiRPA.operators.shape import Expand, Reshape, Transpose
from tests.graph.single import ints, model, node, read, weights
from tests.operators.cases import CASES, Dice, make_boxes
from tests.support import ROOT

ARRANGING = {Reshape, Transpose, Expand}
IMAGE = ("N", 2, 6, 6)
ROW = ("N", 6)


def _one(
    nodes: onnx.NodeProto | Sequence[onnx.NodeProto], shape: Sequence[int | str] = ROW, **constants: object
) -> onnx.ModelProto:
    """A network of one node, or of a few."""
    made = [nodes] if isinstance(nodes, onnx.NodeProto) else nodes
    return model(made, shape, constants)


def _onwards(op_type: str, inputs: str, **attributes: object) -> list[onnx.NodeProto]:
    """Constants that the operator gives from ``x``, added to ``x``, since an output has to depend on the input."""
    return [node(op_type, inputs, "s", **attributes), node("Cast", "s", "f", to=1), node("Add", "x f")]


C6, HALF, TWO = weights(6), np.float32(0.5), np.float32(2)
STATISTICS = {"g": weights(2), "b": weights(2), "m": weights(2), "v": weights(2) ** 2}
NETWORKS: dict[str, onnx.ModelProto] = {
    **{name: _one(node(name, "x")) for name in ("Relu", "LeakyRelu", "Abs", "Sign", "Sigmoid", "Tanh")},
    **{name: _one(node(name, "x")) for name in ("Exp", "Sqrt", "Reciprocal", "Softmax")},
    "Where": _one(node("Where", "m x c"), m=np.array([True] * 4 + [False] * 2), c=C6),
    **{name: _one(node(name, "x")) for name in ("Identity", "Dropout", "Neg", "Flatten")},
    **{name: _one(node(name, "x c"), c=C6) for name in ("Add", "Sub", "Mul", "Div", "Sum")},
    **{name: _one(node(name, "x c"), c=HALF) for name in ("Max", "Min")},
    "Transpose": _one(node("Transpose", "x", perm=[0, 2, 3, 1]), IMAGE),
    "Squeeze": _one(node("Squeeze", "x"), ("N", 1, 6)),
    "Clip": _one(node("Clip", "x lo hi"), lo=-HALF, hi=HALF),
    "Pow": _one(node("Pow", "x c"), c=TWO),
    "Cast": _one(node("Cast", "x", to=1)),
    "CastLike": _one(node("CastLike", "x c"), c=C6),
    "Conv": _one(node("Conv", "x w", pads=[1, 0, 0, 0]), IMAGE, w=weights(3, 2, 3, 3)),
    "AveragePool": _one(node("AveragePool", "x", kernel_shape=[2, 2]), IMAGE),
    "MaxPool": _one(node("MaxPool", "x", kernel_shape=[2, 2]), IMAGE),
    "GlobalAveragePool": _one(node("GlobalAveragePool", "x"), IMAGE),
    "BatchNormalization": _one(node("BatchNormalization", "x g b m v"), IMAGE, **STATISTICS),
    "Gemm": _one(node("Gemm", "x w c", transB=1, alpha=2.0), w=weights(3, 6), c=weights(3)),
    "MatMul": _one(node("MatMul", "x w"), w=weights(6, 3)),
    "ReduceSum": _one(node("ReduceSum", "x a"), a=ints(1)),
    "ReduceMean": _one(node("ReduceMean", "x", axes=[1])),
    "Reshape": _one(node("Reshape", "x s"), s=ints(-1, 2, 3)),
    "Unsqueeze": _one(node("Unsqueeze", "x a"), a=ints(1)),
    "Expand": _one(node("Expand", "x s"), ("N", 1), s=ints(1, 6)),
    "Shape": _one(_onwards("Shape", "x", start=1)),
    "Size": _one(_onwards("Size", "x")),
    "Slice": _one(node("Slice", "x f t a"), f=ints(1), t=ints(4), a=ints(1)),
    "Gather": _one(node("Gather", "x i", axis=1), i=ints(3, 0, 3)),
    "Split": _one([node("Split", "x s", "p q", axis=1), node("Add", "p q")], s=ints(3, 3)),
    "Concat": _one(node("Concat", "x x", axis=1)),
    "Pad": _one(node("Pad", "x p"), p=ints(0, 1, 0, 2)),
}


def test_the_page_is_up_to_date() -> None:
    written = (ROOT / PAGE).read_text(encoding="utf-8")
    assert written == operators_page(), "out of date: run python -m auto_LiRPA.graph.operator_page"


def test_the_page_is_written_where_asked(tmp_path: Path) -> None:
    write_page(tmp_path)
    assert (tmp_path / PAGE).read_text(encoding="utf-8") == operators_page()


def test_every_builder_has_a_network_here() -> None:
    assert set(NETWORKS) == set(BUILDERS)


@pytest.mark.parametrize("op_type", sorted(BUILDERS))
def test_what_reading_gives_is_on_the_page(op_type: str) -> None:
    seen = {type(n.op) for n in read(NETWORKS[op_type]).nodes[1:]}
    listed = set(operators_of(op_type))
    if op_type == "Split":
        seen.discard(type(read(_one(node("Add", "x x"))).nodes[1].op))  # the Add that joins the parts
    if op_type in ("Shape", "Size"):
        assert not listed
        return
    assert seen - ARRANGING <= listed
    assert bool(listed) == bool(seen - ARRANGING)
    row = next(line for line in operators_page().splitlines() if line.startswith(f"| `{op_type}` |"))
    assert ("relaxed" in row.split("|")[2]) >= any(kind.support == "relaxed" for kind in seen)


def _concrete(kind: type[Operator]) -> set[type[Operator]]:
    below = set().union(*(_concrete(k) for k in kind.__subclasses__()))
    own = kind.__module__.startswith("auto_LiRPA.") and "__dataclass_fields__" in vars(kind)
    return below | ({kind} if own and not inspect.isabstract(kind) else set())


def test_every_operator_class_is_on_the_page() -> None:
    for module in pkgutil.walk_packages(auto_LiRPA.operators.__path__, "auto_LiRPA.operators."):
        importlib.import_module(module.name)
    made_by_rewriting = {ColumnLinear, Enter, Exit}  # no file's operator gives them
    assert set(all_operators()) == _concrete(Operator) - made_by_rewriting - {Input}  # type: ignore[type-abstract]


@pytest.mark.parametrize("name", sorted(CASES))
def test_slopes_are_what_the_relaxation_says(name: str) -> None:
    dice = Dice(0, torch.float64)
    case = CASES[name](dice)
    relaxed = isinstance(case.op, NonlinearOperator)
    optimised = relaxed and case.op.relax(*make_boxes(dice, case, "plain", 1)).alpha is not None
    assert has_slopes(type(case.op)) == optimised
    assert (case.op.support == "relaxed") == relaxed
