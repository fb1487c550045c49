"""Built-in architectures: sizes as published, weights that fit by name, files that do not are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from auto_LiRPA.errors import ConfigError, ModelError
from complete_verifier.attack.onnx_network import OnnxNetwork
from complete_verifier.models import build_module, known_names, load_weights
from tests.support import shared_dir

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


def shape_of(name: str) -> tuple[int, ...]:
    return MNIST if name.startswith("mnist") else CIFAR


def neurons(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Inputs of all ReLUs, modules and functions alike."""
    count = 0
    relu = torch.nn.functional.relu

    def counting(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
        nonlocal count
        count += x[0].numel()
        return relu(x)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "relu", counting)
        module.eval()(torch.zeros(1, *shape))
    return count


@pytest.mark.parametrize("name", [n for n in known_names() if n != "ResNet18"])
def test_every_name_builds_a_classifier_of_ten_classes(name: str) -> None:
    x = torch.rand(2, *shape_of(name))
    with torch.no_grad():
        assert build_module(name).eval()(x).shape == (2, 10)


# Sizes as their publishers state them: VNN-COMP 2021 (cifar10_resnet), ERAN (510, 810, 1010, 1610 neurons with the
# outputs), VNN-COMP 2022 (mnist_fc), Dathathri et al. (CNN-A: 166406 weights for MNIST, 214918 for CIFAR).
@pytest.mark.parametrize(
    ("name", "weights", "units"),
    [
        ("resnet2b", 112_006, 6244),
        ("resnet4b", 123_734, 14_436),
        ("mnist_6_100", None, 500),
        ("mnist_9_100", None, 800),
        ("mnist_6_200", None, 1000),
        ("mnist_9_200", None, 1600),
        ("mnist_fc_256x4", None, 1024),
        ("mnist_conv_small", None, 3604),
        ("mnist_conv_big", None, 48_064),
        ("mnist_cnn_4layer", 166_406, None),
        ("cnn_4layer", 214_918, None),
        ("cnn_4layer_b", 2_118_856, None),
    ],
)
def test_sizes_are_the_published_ones(name: str, weights: int | None, units: int | None) -> None:
    module = build_module(name)
    assert weights in (None, sum(p.numel() for p in module.parameters()))
    assert units in (None, neurons(module, shape_of(name)))


@pytest.mark.parametrize("size", ["base", "deep", "wide"])
def test_published_weights_fit_and_give_the_published_outputs(tmp_path: Path, size: str) -> None:
    path = shared_dir("benchmarks", "oval21", "onnx", f"cifar_{size}_kw.onnx")
    state = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in onnx.load(path).graph.initializer}
    torch.save(state, tmp_path / "w.pth")
    module = build_module(f"cifar_model_{size}")
    load_weights(module, tmp_path / "w.pth")
    x = np.random.default_rng(0).normal(size=CIFAR).astype(np.float32)
    with torch.no_grad():
        ours = module(torch.from_numpy(x)[None]).numpy().reshape(-1)
    np.testing.assert_allclose(ours, OnnxNetwork(path).run(x), atol=1e-4)


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "list", "list of dicts"])
def test_weights_are_found_in_all_their_wrappings(tmp_path: Path, wrap: str) -> None:
    source, target = build_module("mnist_tiny_mlp"), build_module("mnist_tiny_mlp")
    state: Any = source.state_dict()
    wrapped = {"plain": state, "state_dict": {"state_dict": state, "epoch": 3}, "list": [state],
               "list of dicts": [{"state_dict": [state]}]}[wrap]  # fmt: skip
    torch.save(wrapped, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    module, path = build_module("mnist_tiny_mlp"), tmp_path / "w.pth"
    state: dict[str, Any] = dict(module.state_dict())
    cases: list[tuple[Any, str]] = [
        (dict(list(state.items())[:-1]), "misses 5.bias"),
        (state | {"x.weight": torch.zeros(1)}, "has besides x.weight"),
        (state | {"1.weight": torch.zeros(3, 3)}, r"1.weight is \[3, 3\], the network has \[20, 784\]"),
        (7, "holds int"),
        (module, "holds more than weights"),
    ]
    content: Any
    for content, message in cases:
        torch.save(content, path)
        with pytest.raises(ModelError, match=message) as caught:
            load_weights(module, path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"w\.pth"):
        load_weights(module, path)
    with pytest.raises(ModelError, match="no such file"):
        load_weights(module, tmp_path / "none.pth")


def test_unknown_names_and_arguments() -> None:
    with pytest.raises(ConfigError, match="perhaps resnet2b"):
        build_module("resnet2c")
    with pytest.raises(ConfigError, match="it is one of"):
        build_module("zzz")
    with pytest.raises(ConfigError, match="unexpected keyword argument 'depth'"):
        build_module("mnist_fc", (), {"depth": 3})
    assert sum(isinstance(m, nn.ReLU) for m in build_module("mnist_fc", (32,), {"hidden": 3}).modules()) == 3
