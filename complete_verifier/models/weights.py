"""Weights of a file for a module: read without running any code, and fitted name by name."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from auto_LiRPA.errors import ModelError

_SHOWN = 3


def load_weights(module: nn.Module, path: Path) -> None:
    """Put the weights of a `.pt`/`.pth` (or safetensors) file into the module.

    The file holds a state dict, alone, under the key ``state_dict``, or as the first item of a list.

    Raises:
        ModelError: it cannot be read, or names or shapes are not the module's.
    """
    state = _state(path)
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a shape that differs
        raise ModelError(f"{path}: its weights do not fit the network: {_mismatch(module, state, error)}") from None
    if missing or unexpected:
        faults = [f"{word} {', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}"
                  for word, names in (("misses", missing), ("has besides", unexpected)) if names]  # fmt: skip
        raise ModelError(f"{path}: its weights do not fit the network: it {' and '.join(faults)}")


def _mismatch(module: nn.Module, state: Mapping[str, Tensor], error: RuntimeError) -> str:
    own = module.state_dict()
    for name, value in state.items():
        if name in own and own[name].shape != value.shape:
            return f"{name} is {list(value.shape)}, the network has {list(own[name].shape)}"
    return " ".join(str(error).split())[:200]


def _state(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; model.path names the weights of model.name")
    content = _content(path)
    if isinstance(content, list | tuple) and content:
        content = content[0]
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    if isinstance(content, list | tuple) and content:
        content = content[0]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path}: holds {type(content).__name__}, not a state dict; save model.state_dict()")
    return content


def _content(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: cannot be read: {error}") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path}: holds more than weights, and code in it is never run; save model.state_dict() alone"
        ) from None
    except (RuntimeError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
        why = " ".join(str(error).split())[:150]
        raise ModelError(f"{path}: no file of weights that torch can read: {why}") from None
