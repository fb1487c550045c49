"""torch modules: exported in memory, weights shared, gradients and later changes arrive, samples must not mix."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import Tensor, nn

from auto_LiRPA.errors import ModelError, UnsupportedOperator
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.graph.source import GraphSource
from auto_LiRPA.graph.torch_export import graph_from_module, source_from_module
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.parallel.store import LocalStore, LocalWeight


def graph_of(module: nn.Module, *shape: int, check: bool = True) -> Graph:
    """The graph, after comparing it with the module on three samples."""
    dtype = next((p.dtype for p in module.parameters()), torch.get_default_dtype())
    graph = graph_from_module(module, torch.rand(2, *shape, dtype=dtype), LocalStore(), check=check)
    if check:
        x = torch.randn(3, *shape, dtype=dtype)
        training = module.training
        with torch.no_grad():
            wanted = module.eval()(x)
        module.train(training)
        found = evaluate(graph, x)
        assert found.shape == wanted.shape
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    return graph


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def weight_tensors(graph: Graph) -> list[Tensor]:
    return [
        n.op.weight.tensor
        for n in graph.nodes
        if isinstance(n.op, Linear | Conv) and isinstance(n.op.weight, LocalWeight)
    ]


class Residual(nn.Module):
    """Convolutions with stride, groups and a batch norm, a residual sum, pooling, a token, slices."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.pool = nn.MaxPool2d(2)
        self.average = nn.AvgPool2d(2)
        self.dropout = nn.Dropout(0.5)
        self.clip = nn.Hardtanh(-3, 3)
        self.last = nn.Linear(4 * 2 * 2 * 2, 5)
        self.register_buffer("scale", torch.rand(4, 1, 1) + 0.5)
        self.norm.running_mean = torch.randn(4)
        self.norm.running_var = torch.rand(4) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first((x - 0.5) / 0.25)))
        y = self.second(y) * self.scale + y
        y = torch.cat([self.pool(y), self.average(nn.functional.leaky_relu(y, 0.1))], dim=1)
        y = self.dropout(y.flatten(1))
        return self.clip(self.last(y).clamp(-4.0, 2.5).clamp_min(-3.5))


Exported = tuple[nn.Module, GraphSource]


@pytest.fixture(scope="module")
def dense() -> Exported:
    """Exporting costs a second: one net for all tests that only look at it (or compare it with itself)."""
    module = mlp()
    return module, source_from_module(module, torch.rand(2, 3, 4))


@pytest.fixture(scope="module")
def residual() -> Exported:
    module = Residual().train()
    module.norm.eval()
    return module, source_from_module(module, torch.rand(2, 2, 8, 8))


def same(exported: Exported, *shape: int) -> bool:
    """Graph and module agree on three samples, with the parameters as they are now."""
    module, source = exported
    dtype = next(module.parameters()).dtype
    x = torch.randn(3, *shape, dtype=dtype)
    training = [m for m in module.modules() if m.training]
    with torch.no_grad():
        wanted = module.eval()(x)
    for part in training:
        part.training = True
    return torch.allclose(evaluate(source.graph, x), wanted, rtol=1e-4, atol=1e-5)


def test_weights_are_the_module_s_parameters(dense: Exported) -> None:
    module, source = dense
    assert same(dense, 3, 4)
    layers = linear_layers(module)
    assert [id(t) for t in weight_tensors(source.graph)] == [id(layer.weight) for layer in layers]
    biases = [n.op.bias for n in source.graph.nodes if isinstance(n.op, Linear)]
    assert [b.data_ptr() for b in biases if b is not None] == [layer.bias.data_ptr() for layer in layers]


def test_convolutional_net(residual: Exported) -> None:
    module, source = residual
    assert isinstance(module, Residual)
    assert same(residual, 2, 8, 8)
    shared = {t.data_ptr() for t in weight_tensors(source.graph)}
    assert shared == {m.weight.data_ptr() for m in (module.first, module.second, module.last)}


def test_modes_are_restored_part_by_part(residual: Exported) -> None:
    module, _ = residual
    assert isinstance(module, Residual)
    assert module.training and module.dropout.training and not module.norm.training


class Mixed(nn.Module):
    """Operators and spellings that exporters write in several nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 4))
        self.token = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        a, b = y.chunk(2, dim=2)
        y = torch.cat([a.abs(), torch.tanh(b) - b.pow(2)], dim=-1)
        y = nn.functional.pad(y, (1, 1), value=0.25)[:, :, 1:5].transpose(1, 2) @ torch.eye(4, dtype=x.dtype)
        y = (y.permute(0, 2, 1) @ self.w.t()).sigmoid() * 2 - x.mean(dim=(1, 2), keepdim=True)
        return y.reshape(x.size(0), -1)[:, ::3] / 3


def test_spellings() -> None:
    """In float64, so that a wrong constant shows at once."""
    module = Mixed().double()
    graph = graph_of(module, 3, 4)
    assert weight_tensors(graph)[-1].data_ptr() == module.w.data_ptr()
    assert all(t.dtype == torch.float64 for t in weight_tensors(graph))


def test_conv1d_and_unbatched_style_reshapes() -> None:
    graph_of(nn.Sequential(nn.Unflatten(1, (2, 6)), nn.Conv1d(2, 3, 3, padding=1, dilation=1), nn.Flatten()), 12)


class FrozenView(nn.Module):
    """A view that was written for one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x.view(1, -1))


def test_view_frozen_to_one_sample_is_repaired() -> None:
    module = FrozenView()
    graph = graph_from_module(module, torch.rand(1, 3, 4), LocalStore())
    x = torch.rand(3, 3, 4)
    wanted = torch.cat([module(x[i : i + 1]) for i in range(3)])
    assert torch.allclose(evaluate(graph, x), wanted, atol=1e-6)


class SumsSamples(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0, keepdim=True)


class DividesByBatch(nn.Module):
    """The batch length enters as a number: only a comparison can see it."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.shape[0]


@pytest.mark.parametrize("kind", [SumsSamples, DividesByBatch])
def test_modules_that_mix_samples_are_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(ModelError, match=r"module \w+.*mix") as caught:
        graph_of(kind(), 4)
    assert "\n" not in str(caught.value)


def test_parameter_changes_are_seen_and_gradients_arrive(dense: Exported) -> None:
    module, source = dense
    graph = source.graph
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    x = torch.randn(5, 3, 4)
    for _ in range(2):
        optimiser.zero_grad()
        evaluate(graph, x).square().sum().backward()
        found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        optimiser.zero_grad()
        module(x).square().sum().backward()
        wanted = [p.grad for p in module.parameters() if p.grad is not None]
        assert len(found) == 6
        assert all(torch.allclose(f, w, rtol=1e-4, atol=1e-5) for f, w in zip(found, wanted, strict=True))
        optimiser.step()
        assert same(dense, 3, 4)
    assert source.graph is graph


def test_moving_the_module_is_seen(dense: Exported) -> None:
    module, _ = dense
    module.double()
    assert same(dense, 3, 4)
    module.float()
    assert same(dense, 3, 4)


def test_statistics_of_a_batch_norm_are_read_again_when_they_changed(residual: Exported) -> None:
    module, source = residual
    assert isinstance(module, Residual)
    first = source.graph
    assert source.graph is first
    module.train()
    module(torch.randn(16, 2, 8, 8) * 3)
    module.norm.eval()
    assert same(residual, 2, 8, 8)
    x = torch.randn(3, 2, 8, 8)
    assert not torch.allclose(evaluate(first, x), evaluate(source.graph, x), rtol=1e-3, atol=1e-3)


def test_gradients_reach_a_batch_norm_s_parameters(residual: Exported) -> None:
    module, source = residual
    assert isinstance(module, Residual)
    norm = module.norm
    module.eval()
    x = torch.randn(3, 2, 8, 8)
    found = torch.autograd.grad(evaluate(source.graph, x).sum(), [norm.weight, norm.bias])
    wanted = torch.autograd.grad(module(x).sum(), [norm.weight, norm.bias])
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_weight_norm_is_derived_and_read_again() -> None:
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.ReLU())
    source = source_from_module(module, torch.rand(1, 4))
    x = torch.randn(3, 4)
    assert torch.allclose(evaluate(source.graph, x), module(x), atol=1e-5)
    assert {n.split(".")[-1] for n in source.derived} == {"original0", "original1"}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.7)
    assert torch.allclose(evaluate(source.graph, x), module(x), atol=1e-5)


def test_tied_and_unused_parameters() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.unused = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    module = Tied()
    assert [t.data_ptr() for t in weight_tensors(graph_of(module, 4))] == [module.a.weight.data_ptr()] * 2


def test_weights_larger_than_a_protobuf_message() -> None:
    """17 GB that exist in name only: whatever serialised, copied or summed them would fail."""
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(1 << 16, 1 << 16), nn.ReLU(), nn.Linear(1 << 16, 10))
    graph = graph_from_module(module, torch.zeros(1, 1 << 16, device="meta"), LocalStore())
    assert graph.output_shape == (10,)
    assert weight_tensors(graph)[0] is module[0].weight


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.sum() > 0) else -x


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x - 1


class NoOnnx(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (DataDependent, "cannot be exported to ONNX"),
        (TwoInputs, "cannot be exported to ONNX .*'y'"),
        (TwoOutputs, "2 outputs"),
        (NoOnnx, "cannot be exported to ONNX .*bessel_j0"),
    ],
)
def test_what_cannot_be_exported_is_one_line(kind: type[nn.Module], text: str) -> None:
    with pytest.raises(ModelError, match=text) as caught:
        graph_of(kind(), 4)
    assert "\n" not in str(caught.value)
    assert kind.__name__ in str(caught.value)


@pytest.mark.parametrize(
    "example", [(), (torch.zeros(1, 4),) * 2, torch.zeros(()), torch.zeros(1, 4, dtype=torch.int64)]
)
def test_unusable_example_input(example: Tensor | tuple[Tensor, ...]) -> None:
    with pytest.raises(ModelError, match="example input"):
        graph_from_module(nn.Linear(4, 2), example, LocalStore())


def test_nan_weight_is_named() -> None:
    module = mlp()
    with torch.no_grad():
        linear_layers(module)[1].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"module Sequential: initializer 3.weight: the weights contain NaN"):
        graph_of(module, 3, 4)


def test_unsupported_operator_of_a_module() -> None:
    with pytest.raises(UnsupportedOperator, match=r"module Sequential: node \w+ \(Celu\)"):
        graph_of(nn.Sequential(nn.Linear(4, 4), nn.CELU()), 4)


def test_export_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        graph_of(mlp(), 3, 4)
    out, err = capfd.readouterr()
    assert (out, err, [str(w.message) for w in caught]) == ("", "", [])
    assert logging.getLogger("torch.onnx").level != logging.CRITICAL
