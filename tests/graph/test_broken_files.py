"""Files that cannot be used end with one line that names the file and the place, never with a traceback of ours."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from auto_LiRPA.errors import ModelError
from auto_LiRPA.graph.module import load_onnx
from auto_LiRPA.graph.onnx_reader import read_onnx
from auto_LiRPA.parallel.store import LocalStore
from tests.graph.single import model, node, weights


def good() -> onnx.ModelProto:
    """A dense net that works."""
    nodes = [node("Gemm", "x w b", "h"), node("Relu", "h", "r"), node("Gemm", "r v")]
    return model(nodes, ["N", 4], {"w": weights(4, 8), "b": weights(8), "v": weights(8, 2)})


def with_weight(name: str, value: np.ndarray) -> onnx.ModelProto:
    proto = good()
    for item in proto.graph.initializer:
        if item.name == name:
            item.CopyFrom(numpy_helper.from_array(value, name))
    return proto


def poisoned(number: float) -> onnx.ModelProto:
    bad = weights(4, 8)
    bad[2, 3] = number
    return with_weight("w", bad)


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    proto = good()
    change(proto)
    return proto


def constant_output() -> onnx.ModelProto:
    return model([node("Add", "x x", "t"), node("Add", "c c")], ["N", 4], {"c": weights(4)})


CASES: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "NaN weight": (lambda: poisoned(np.nan), "initializer w: the weights contain NaN"),
    "Inf weight": (lambda: poisoned(np.inf), "initializer w: the weights contain Inf"),
    "missing initializer": (
        lambda: changed(lambda p: p.graph.initializer.pop()),
        r"node the_y \(Gemm\): reads v, which no node",
    ),
    "weight of wrong rank": (
        lambda: with_weight("w", weights(4, 8, 1)),
        r"node the_h \(Gemm\): A and B have to have 2",
    ),
    "weight of wrong length": (lambda: with_weight("v", weights(7, 2)), r"node the_y \(Gemm\).*takes 7 values"),
    "bias of wrong length": (lambda: with_weight("b", weights(7)), r"node the_h \(Gemm\).*do not fit together"),
    "weight bytes cut short": (
        lambda: changed(lambda p: setattr(p.graph.initializer[0], "raw_data", b"abcd")),
        "initializer w: 4 bytes of data",
    ),
    "text weight": (
        lambda: changed(lambda p: setattr(p.graph.initializer[0], "data_type", TensorProto.STRING)),
        "initializer w: element type 8",
    ),
    "no opset": (lambda: changed(lambda p: p.ClearField("opset_import")), "which ONNX opset"),
    "two outputs": (
        lambda: changed(lambda p: p.graph.output.append(helper.make_tensor_value_info("h", 1, None))),
        r"2 outputs \(y, h\)",
    ),
    "two inputs": (
        lambda: model([node("Add", "x z")], ["N", 4]),
        r"node the_y \(Add\): reads z",
    ),
    "two declared inputs": (
        lambda: changed(
            lambda p: (
                p.graph.input.append(helper.make_tensor_value_info("z", 1, ["N", 8])),
                p.graph.node[1].input.append("z"),
            )
        ),
        r"reads 2 inputs \(x, z\)",
    ),
    "no input": (lambda: constant_output(), "reads 0 inputs"),
    "output of no node": (
        lambda: changed(lambda p: setattr(p.graph.output[0], "name", "nowhere")),
        "reads 0 inputs|nothing produces",
    ),
    "integer input": (
        lambda: changed(lambda p: setattr(p.graph.input[0].type.tensor_type, "elem_type", TensorProto.INT64)),
        "input x has element type 7",
    ),
    "input without shape": (
        lambda: changed(lambda p: p.graph.input[0].type.tensor_type.ClearField("shape")),
        "the input has no shape; give input_shape",
    ),
    "attribute of wrong type": (
        lambda: model([node("Flatten", "x", axis="one")], ["N", 4]),
        r"node the_y \(Flatten\): attribute axis is not a whole number",
    ),
    "constants that do not fit": (
        lambda: model([node("Add", "c d", "e"), node("Mul", "x e")], ["N", 4], {"c": weights(3), "d": weights(2)}),
        r"node the_e \(Add\): its constant inputs do not fit",
    ),
    "folding gives NaN": (
        lambda: model([node("Log", "c", "e"), node("Mul", "x e")], ["N", 1], {"c": np.array([-1], np.float32)}),
        r"node the_e \(Log\): the weights contain NaN",
    ),
    "axis out of range": (
        lambda: model([node("Concat", "x x", axis=5)], ["N", 4]),
        r"node the_y \(Concat\): axis 5 does not exist",
    ),
    "sparse weights": (
        lambda: changed(lambda p: p.graph.sparse_initializer.add()),
        "sparse weights are not supported",
    ),
    "output is constant": (
        lambda: model([node("Shape", "x", "s"), node("Cast", "s", to=1)], ["N", 4]),
        "the output y does not depend on the input",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("load", ["read_onnx", "load_onnx"])
def test_unusable_network(case: str, load: str, tmp_path: Path) -> None:
    make, text = CASES[case]
    path = tmp_path / "net.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(ModelError, match=text) as caught:
        read_onnx(path, LocalStore()) if load == "read_onnx" else load_onnx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_good_network_is_read(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(good().SerializeToString())
    assert read_onnx(path, LocalStore()).output_shape == (2,)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "no such file"),
        (b"", "holds no network"),
        (b"this is a text file\n" * 5, "not an ONNX file"),
        (good().SerializeToString()[:-40], "not an ONNX file, or truncated"),
        (b"\x1f\x8b broken", "broken gzip data"),
        (gzip.compress(good().SerializeToString())[:-30], "broken gzip data"),
        (gzip.compress(b"text"), "not an ONNX file"),
    ],
    ids=["missing", "empty", "text", "truncated", "bad gzip", "truncated gzip", "gzipped text"],
)
def test_unreadable_file(content: bytes | None, text: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=text) as caught:
        load_onnx(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        load_onnx(tmp_path)


def external(folder: Path, location: str = "weights.bin") -> Path:
    """The good net with its weights beside the file."""
    path = folder / "net.onnx"
    onnx.save(good(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    proto = onnx.load(path, load_external_data=False)
    for item in proto.graph.initializer:
        for entry in item.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data(tmp_path: Path) -> None:
    x = torch.rand(3, 4)
    inside = tmp_path / "inside.onnx"
    inside.write_bytes(good().SerializeToString())
    assert torch.equal(load_onnx(external(tmp_path))(x), load_onnx(inside)(x))


@pytest.mark.parametrize(
    ("location", "text"), [("gone.bin", "missing or too short"), ("../weights.bin", "lie outside its folder")]
)
def test_external_data_that_cannot_be_used(location: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=text):
        load_onnx(external(tmp_path, location))


def test_unknown_quirk(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(good().SerializeToString())
    load_onnx(path, quirks={"Reshape": {"fix_batch_size": True}})
    with pytest.raises(ModelError, match="onnx_quirks Softmax.skip is unknown"):
        load_onnx(path, quirks={"Softmax": {"skip": True}})
