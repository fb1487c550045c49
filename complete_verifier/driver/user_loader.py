"""Network and property from the user's own loader (`model.onnx_loader`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from auto_LiRPA.errors import ConfigError
from auto_LiRPA.parallel.context import DistributedContext
from complete_verifier.compat.config_view import tree_of
from complete_verifier.compat.hooks import Hooks
from complete_verifier.compat.read_vnnlib import property_from
from complete_verifier.config import Config
from complete_verifier.driver.networks import Network, from_module
from complete_verifier.spec.property import Property

_KEY = "model.onnx_loader"


def load_both(
    config: Config, hooks: Hooks, context: DistributedContext, network: Path, specification: Path
) -> tuple[Network, Property]:
    """What callable(file_root, onnx_path, vnnlib_path) -> (module, input shape, compiled property) gives.

    The module is the network from then on, and judges counterexamples, in the coordinates of its own input.

    Raises:
        ConfigError: the loader fails or returns something else.
    """
    root = config.general.root_path
    paths = (str(_below(root, path)) for path in (network, specification))
    result = hooks.call(_KEY, config.model.onnx_loader, tree_of(config), root, *paths)
    if not isinstance(result, Sequence) or len(result) != 3:
        raise ConfigError(f"{_KEY}: returns {type(result).__name__}; expected (module, input shape, property)")
    module, shape, compiled = result
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{_KEY}: its first value is {type(module).__name__}; a torch.nn.Module is needed")
    try:
        sizes = tuple(int(size) for size in shape)[1:]
    except (TypeError, ValueError):
        raise ConfigError(f"{_KEY}: its second value is {shape!r}; the input shape with the batch in front") from None
    return from_module(module, config, context, sizes, _KEY), property_from(compiled, f"{_KEY}: {specification}")


def _below(root: str, path: Path) -> Path:
    """A path as the loader wants it: relative to the root that it gets as well."""
    return path.relative_to(root) if root and path.is_relative_to(root) else path
