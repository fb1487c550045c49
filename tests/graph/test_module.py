"""`load_onnx`: any batch size, parameters under the file's names, one set of numbers behind module and graph."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from auto_LiRPA.errors import ModelError
from auto_LiRPA.graph.module import OnnxModule, load_onnx
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.operators.linear import Linear
from tests.graph.single import ints, model, node, session, weights


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def dense(shape: list[int | str] | None = None) -> onnx.ModelProto:
    """One weight as [out, in] and one as [in, out], so with and without transposition, and a batch norm."""
    nodes = [
        node("Gemm", "x layers.0.weight layers.0.bias", "h", transB=1),
        node("BatchNormalization", "h g b m v", "n"),
        node("Relu", "n", "r"),
        node("MatMul", "r layers.2/weight", "z"),
        node("Add", "z layers.2.bias"),
    ]
    constants = {
        "layers.0.weight": weights(8, 4),
        "layers.0.bias": weights(8),
        "g": weights(8),
        "b": weights(8, seed=2),
        "m": weights(8, seed=3),
        "v": np.abs(weights(8, seed=4)),
        "layers.2/weight": weights(8, 2),
        "layers.2.bias": weights(2),
    }
    return model(nodes, shape or ["N", 4], constants)


def same(module: OnnxModule, proto: onnx.ModelProto, n: int = 3) -> bool:
    x = torch.randn(n, 4)
    wanted = session(proto).run(None, {"x": x.numpy()})[0]
    return bool(np.allclose(module(x).detach().numpy(), wanted, rtol=1e-5, atol=1e-6))


def test_parameters_have_the_file_s_names(tmp_path: Path) -> None:
    module = load_onnx(saved(dense(), tmp_path))
    assert set(module.state_dict()) == {i.name for i in dense().graph.initializer}
    assert same(module, dense())
    assert not any(p.requires_grad for p in module.parameters())


def test_weights_are_the_parameters_themselves(tmp_path: Path) -> None:
    """Both orientations: same storage, and laid out in one piece for the block store."""
    module = load_onnx(saved(dense(), tmp_path), trainable=True)
    state = dict(module.named_parameters())
    linear = [n.op for n in module.graph.nodes if isinstance(n.op, Linear)]
    for op, name in zip(linear, ("layers.0.weight", "layers.2/weight"), strict=True):
        (block,) = op.weight.blocks()
        assert block.data.data_ptr() == state[name].data_ptr()
        assert block.data.is_contiguous()
        assert op.weight.requires_grad


def test_changes_of_parameters_are_seen(tmp_path: Path) -> None:
    """In place for weights; for numbers computed from them (the batch norm) by reading again."""
    module = load_onnx(saved(dense(), tmp_path))
    before = module.graph
    assert module.graph is before
    changed = dense()
    for item in changed.graph.initializer:
        array = onnx.numpy_helper.to_array(item) * 1.5
        item.CopyFrom(onnx.numpy_helper.from_array(array, item.name))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    assert same(module, changed)


def test_weights_alone_do_not_cause_another_read(tmp_path: Path) -> None:
    module = load_onnx(saved(dense(), tmp_path))
    before = module.graph
    with torch.no_grad():
        module.get_parameter("layers.0.weight").mul_(2)
    assert module.graph is before


def test_moving_to_another_element_type(tmp_path: Path) -> None:
    module = load_onnx(saved(dense(), tmp_path))
    x = torch.randn(3, 4, dtype=torch.float64)
    single = module(x.float())
    double = module.double()(x)
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), single, rtol=1e-4, atol=1e-5)
    assert load_onnx(saved(dense(), tmp_path), dtype=torch.float64)(x).dtype == torch.float64


def test_copy_has_its_own_parameters(tmp_path: Path) -> None:
    module = load_onnx(saved(dense(), tmp_path))
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert same(module, dense())
    assert other(torch.randn(2, 4)).abs().max() == 0


def test_gradients_reach_parameters_twice(tmp_path: Path) -> None:
    """Views of parameters must not keep a graph that a first backward pass frees."""
    module = load_onnx(saved(dense(), tmp_path), trainable=True)
    for _ in range(2):
        module.zero_grad()
        evaluate(module.graph, torch.randn(3, 4)).sum().backward()
        reached = {n for n, p in module.named_parameters() if p.grad is not None}
        assert reached == {"layers.0.weight", "layers.0.bias", "g", "b", "layers.2/weight", "layers.2.bias"}
    assert set(module.source.derived) == {"m", "v"}


def test_an_optimiser_step_between_two_backward_passes(tmp_path: Path) -> None:
    module = load_onnx(saved(dense(), tmp_path), trainable=True)
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-3)
    x, losses = torch.randn(16, 4), []
    for _ in range(5):
        optimiser.zero_grad()
        loss = module(x).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)


def test_names_that_collide_with_a_module_s_own(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x forward", "a"),
        node("Add", "a training", "b"),
        node("Add", "b w", "c"),
        node("Add", "c w.x", "d"),
        node("Add", "d ..y"),
    ]
    constants = {
        "forward": weights(4, 4),
        "training": weights(4),
        "w": weights(4),
        "w.x": weights(4),
        "..y": weights(4),
    }
    proto = model(nodes, ["N", 4], constants)
    module = load_onnx(saved(proto, tmp_path))
    assert len(module.state_dict()) == 5
    assert same(module, proto)


@pytest.mark.parametrize("shape", [[5], [2, 5]])
def test_without_batch_axis(shape: list[int], tmp_path: Path) -> None:
    proto = model([node("MatMul", "x w")], shape, {"w": weights(5, 3)})
    module = load_onnx(saved(proto, tmp_path))
    x = torch.randn(*shape)
    wanted = session(proto).run(None, {"x": x.numpy()})[0]
    assert module(x).shape == wanted.shape
    assert torch.allclose(module(x), torch.from_numpy(wanted), atol=1e-6)
    assert torch.allclose(module(x.expand(3, *shape))[2], torch.from_numpy(wanted), atol=1e-6)


def test_wrong_input_shape_is_one_line(tmp_path: Path) -> None:
    module = load_onnx(saved(dense(), tmp_path))
    for shape in ((4,), (3, 5), (3, 4, 1), ()):
        with pytest.raises(ModelError, match=r"net.onnx: input of shape .*expected \[N, 4\]"):
            module(torch.zeros(shape))


def test_integer_initialisers_stay_out_of_the_parameters(tmp_path: Path) -> None:
    proto = model(
        [node("Reshape", "x s", "r"), node("MatMul", "r w")], [1, 2, 2], {"s": ints(1, -1), "w": weights(4, 2)}
    )
    module = load_onnx(saved(proto, tmp_path))
    assert list(module.state_dict()) == ["w"]
    assert module(torch.randn(3, 2, 2)).shape == (3, 2)
