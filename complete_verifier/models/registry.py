"""The names that `model.name` may be without user code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType

from torch import nn

from auto_LiRPA.errors import ConfigError
from complete_verifier.models.plain import (
    CIFAR,
    CNN_A,
    CNN_B,
    ERAN_BIG,
    ERAN_SMALL,
    MNIST,
    OVAL_BASE,
    OVAL_DEEP,
    OVAL_WIDE,
    conv_net,
    dense_net,
)
from complete_verifier.models.residual import ResNet18, SmallResNet, model_resnet

Maker = Callable[..., nn.Module]

_PIXELS = 28 * 28
_FC_NAME = re.compile(r"mnist_fc_(?P<width>\d+)x(?P<hidden>\d+)")


def mnist_fc(width: int = 256, hidden: int = 2, num_classes: int = 10) -> nn.Sequential:
    """Dense layers for 28x28 images: ``hidden`` layers of ``width`` neurons, as in VNN-COMP's mnist_fc."""
    return dense_net(_PIXELS, [width] * hidden + [num_classes])


def _eran(hidden: int, width: int) -> Maker:
    """ERAN's 6x100 has five hidden layers of 100 (510 neurons with the outputs), 9x200 eight of 200 (1610)."""
    return partial(dense_net, _PIXELS, [width] * hidden + [10])


_CIFAR_A = partial(conv_net, CIFAR, CNN_A, (100, 10))
_CIFAR_B = partial(conv_net, CIFAR, CNN_B, (250, 10))

MAKERS: Mapping[str, Maker] = MappingProxyType(
    {
        "mnist_cnn_4layer": partial(conv_net, MNIST, CNN_A, (100, 10)),
        "cnn_4layer": _CIFAR_A,
        "cnn_4layer_adv": _CIFAR_A,
        "cnn_4layer_adv4": _CIFAR_A,
        "cnn_4layer_mix4": _CIFAR_A,
        "cnn_4layer_b": _CIFAR_B,
        "cnn_4layer_b4": _CIFAR_B,
        "cifar_model_base": partial(conv_net, CIFAR, OVAL_BASE, (100, 10)),
        "cifar_model_deep": partial(conv_net, CIFAR, OVAL_DEEP, (100, 10)),
        "cifar_model_wide": partial(conv_net, CIFAR, OVAL_WIDE, (100, 10)),
        "cifar_conv_small": partial(conv_net, CIFAR, ERAN_SMALL, (100, 10)),
        "cifar_conv_big": partial(conv_net, CIFAR, ERAN_BIG, (512, 512, 10)),
        "mnist_conv_small": partial(conv_net, MNIST, ERAN_SMALL, (100, 10)),
        "mnist_conv_big": partial(conv_net, MNIST, ERAN_BIG, (512, 512, 10)),
        "mnist_6_100": _eran(5, 100),
        "mnist_9_100": _eran(8, 100),
        "mnist_6_200": _eran(5, 200),
        "mnist_9_200": _eran(8, 200),
        "mnist_fc": mnist_fc,
        "mnist_tiny_mlp": partial(dense_net, _PIXELS, (20, 20, 10)),
        "resnet2b": partial(SmallResNet, 8, (2,)),
        "resnet4b": partial(SmallResNet, 16, (2, 2)),
        "ResNet18": ResNet18,
        "model_resnet": model_resnet,
    }
)


def known_names() -> tuple[str, ...]:
    """All names, for messages and documentation."""
    return (*MAKERS, "mnist_fc_256x2")


def build_module(name: str, args: tuple[object, ...] = (), kwargs: Mapping[str, object] | None = None) -> nn.Module:
    """The network of a built-in name, with random weights.

    Raises:
        ConfigError: there is no such name, or it does not take these arguments.
    """
    maker = MAKERS.get(name)
    pattern = _FC_NAME.fullmatch(name)
    if maker is None and pattern is not None:
        maker = partial(mnist_fc, int(pattern["width"]), int(pattern["hidden"]))
    if maker is None:
        near = get_close_matches(name, known_names(), n=1)
        hint = f"perhaps {near[0]}?" if near else f"it is one of {', '.join(known_names())}"
        raise ConfigError(f'model.name = {name}: no built-in network; {hint} Or give Customized("file.py", "callable")')
    try:
        inspect.signature(maker).bind(*args, **(kwargs or {}))
    except TypeError as error:
        raise ConfigError(f"model.name = {name}(...): {error}") from None
    return maker(*args, **(kwargs or {}))
