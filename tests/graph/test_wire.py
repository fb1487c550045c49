"""Weights are read from their place in the file: same numbers as by parsing, and damaged files never surprise."""

from __future__ import annotations

import random
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper

from auto_LiRPA.errors import ModelError
from auto_LiRPA.graph.module import load_onnx
from auto_LiRPA.graph.onnx_file import load_proto
from auto_LiRPA.graph.onnx_tensors import torch_tensor
from auto_LiRPA.graph.onnx_wire import WireError, cut_weights
from tests.graph.single import ints, model, node, weights


def network() -> onnx.ModelProto:
    """Weights on both sides of the length from which they stay in the file, whole numbers among them."""
    nodes = [
        node("Reshape", "x s", "f"),
        node("Gemm", "f w b", "h"),
        node("Relu", "h", "r"),
        node("Unsqueeze", "r axis", "u"),
        node("Conv", "u k", "c", pads=[1, 1]),
        node("MaxPool", "c", "p", kernel_shape=[2], strides=[2]),
        node("Flatten", "p", "q"),
        node("MatMul", "q v"),
    ]
    constants = {
        "s": ints(1, -1),
        "w": weights(24, 60),
        "b": weights(60),
        "axis": ints(1),
        "k": weights(2, 1, 3),
        "v": weights(60, 40),
    }
    return model(nodes, ["N", 4, 6], constants)


def test_large_weights_are_cut_out_and_found_again(tmp_path: Path) -> None:
    raw = network().SerializeToString()
    path = tmp_path / "net.onnx"
    path.write_bytes(raw)
    assert len(cut_weights(raw, "net.onnx")) < len(raw) / 4
    whole = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in network().graph.initializer}
    light = load_proto(path)
    assert [n.SerializeToString() for n in light.graph.node] == [n.SerializeToString() for n in network().graph.node]
    for item in light.graph.initializer:
        assert torch.equal(torch_tensor(item, item.name, tmp_path), whole[item.name])
        assert (item.data_location == onnx.TensorProto.EXTERNAL) == (item.name in ("w", "v"))


def test_a_file_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "blob").write_bytes(network().SerializeToString())
    (tmp_path / "net.onnx").symlink_to(tmp_path / "data" / "blob")
    x = torch.rand(2, 4, 6)
    assert torch.equal(load_onnx(tmp_path / "net.onnx")(x), load_onnx(tmp_path / "data" / "blob")(x))


def test_typed_fields_and_other_element_types(tmp_path: Path) -> None:
    """Numbers kept in typed fields, float16 and bfloat16: all become the run's element type."""
    proto = network()
    for item, kind in zip([i for i in proto.graph.initializer if i.name in "wbkv"], (10, 1, 16, 11), strict=True):
        values = numpy_helper.to_array(item)
        item.CopyFrom(onnx.helper.make_tensor(item.name, kind, values.shape, values.reshape(-1).tolist()))
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    found, whole = load_onnx(path).state_dict(), {i.name: i for i in network().graph.initializer}
    for name in "wbkv":
        assert found[name].dtype == torch.float32
        assert torch.allclose(found[name], torch.from_numpy(numpy_helper.to_array(whole[name]).copy()), rtol=1e-2)


@pytest.mark.parametrize("data", [b"\xff" * 40, b"\x0a\x7f", b"\x3a", b"\x00\x00"])
def test_bytes_that_are_no_message(data: bytes) -> None:
    with pytest.raises(WireError):
        cut_weights(data, "net.onnx")


def test_damaged_files_end_with_one_line(tmp_path: Path, count: object) -> None:
    """Truncated anywhere, or a few bytes changed: a network, or a ModelError of one line, nothing else."""
    assert callable(count)
    raw, path, rng = network().SerializeToString(), tmp_path / "net.onnx", random.Random(0)
    refused = 0
    tries = count(150, 5000)
    for _ in range(tries):
        data = bytearray(raw)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.choice([1, 1, 2, 5])):
                at = rng.choice([rng.randrange(600), len(data) - 1 - rng.randrange(200), rng.randrange(len(data))])
                data[at] = rng.randrange(256)
        path.write_bytes(data)
        try:
            load_onnx(path)
        except ModelError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error)
    assert tries / 10 < refused < tries
