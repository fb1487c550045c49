"""`load_onnx`: an ONNX file as a torch module whose parameters and graph are one and the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from auto_LiRPA.errors import ConfigError, ModelError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.onnx_file import load_proto
from auto_LiRPA.graph.onnx_reader import check_quirks
from auto_LiRPA.graph.onnx_tensors import weight_tensor
from auto_LiRPA.graph.onnx_walk import names_read, needed_nodes, one_line, right_factors
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.graph.source import GraphSource, Recipe, as_shape
from auto_LiRPA.parallel.store import LocalStore, ParameterStore

if TYPE_CHECKING:
    from onnx import ModelProto


class OnnxModule(nn.Module):
    """A network read from ONNX. ``graph`` is used by the bound engine directly, without another export."""

    def __init__(
        self, recipe: Recipe, parameters: Mapping[str, nn.Parameter], make_store: Callable[[], ParameterStore]
    ) -> None:
        super().__init__()
        self._slots = {name: _attach(self, name, parameter) for name, parameter in parameters.items()}
        # fixed parameters are changed by hand if at all, which torch's count of changes shows without synchronising
        self._trainable = any(parameter.requires_grad for parameter in parameters.values())
        self._source = GraphSource(recipe, self._current, make_store, compare_contents=self._trainable)

    def _current(self) -> dict[str, Tensor]:
        return {name: getattr(owner, last) for name, (owner, last) in self._slots.items()}

    @property
    def graph(self) -> Graph:
        """The graph over this module's own parameters."""
        return self._source.graph

    @property
    def source(self) -> GraphSource:
        """Where the graph comes from: its store, and which constants are computed from parameters."""
        return self._source

    def source_in(self, make_store: Callable[[], ParameterStore]) -> GraphSource:
        """The same network in another store."""
        return GraphSource(self._source.recipe, self._current, make_store, compare_contents=self._trainable)

    def forward(self, x: Tensor) -> Tensor:
        """The file's input with any number of samples in place of its batch axis -> outputs with that number in front.

        A network without batch axis takes its own input shape too (the result then has no batch axis either).

        Raises:
            ModelError: the input's shape does not fit.
        """
        graph = self.graph
        shape = graph.input_shape
        if tuple(x.shape) == shape and not graph.input_batched:
            return self._outputs(x.unsqueeze(0)).squeeze(0)
        if x.dim() == 0 or tuple(x.shape[1:]) != shape:
            expected = ", ".join(str(s) for s in ("N", *shape))
            raise ModelError(f"{self._source.recipe.place}: input of shape {list(x.shape)}; expected [{expected}]")
        return self._outputs(x)

    def _outputs(self, x: Tensor) -> Tensor:
        y = evaluate(self.graph, x)
        return y.squeeze(1) if self.graph.scalar_output else y


def load_onnx(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    input_shape: Sequence[int] | None = None,
    quirks: Mapping[str, Mapping[str, object]] | None = None,
    trainable: bool = False,
    make_store: Callable[[], ParameterStore] = LocalStore,
) -> OnnxModule:
    """Read a ``.onnx`` or ``.onnx.gz`` file as a module.

    Args:
        path: the file.
        dtype: element type of the parameters; None takes torch's default.
        device: where the parameters go.
        input_shape: the input's shape, batch as -1 (no -1: no batch axis); None takes the file's.
        quirks: as in `read_onnx`.
        trainable: whether the parameters ask for gradients.
        make_store: makes the store that holds the weights.

    Raises:
        ModelError: the file or the network is unusable. UnsupportedOperator: a node has no rules here. ConfigError: the
            parameters are to be trained, but the store keeps copies.
    """
    path = Path(path)
    check_quirks(quirks, str(path))
    proto = load_proto(path)
    kind, place = dtype or torch.get_default_dtype(), torch.device(device)
    parameters = _take_parameters(proto, path, kind, place, trainable)
    recipe = Recipe(proto, str(path), kind, place, as_shape(input_shape))
    module = OnnxModule(recipe, parameters, make_store).eval()
    # read at once: a network that cannot be used is refused here, not at its first use
    _ = module.graph
    if trainable and module.source.copied:
        raise ConfigError(
            f"{path}: trainable parameters: parallel.mode fsdp and offload keep copies of weights, which no gradient"
            " reaches; use mode single"
        )
    return module


def _take_parameters(
    proto: ModelProto, path: Path, dtype: torch.dtype, device: torch.device, trainable: bool
) -> dict[str, nn.Parameter]:
    """Move the floating-point initialisers that the output needs out of ``proto``."""
    import onnx

    nodes = needed_nodes(proto.graph, proto.graph.output[0].name)
    used = {name for node in nodes for name in names_read(node)}
    turned = right_factors(nodes)
    taken: dict[str, nn.Parameter] = {}
    kept: list[bytes] = []
    for item in proto.graph.initializer:
        if item.name not in used:
            continue
        place = f"{path}: initializer {one_line(item.name)}"
        tensor = weight_tensor(item, place, path.parent, dtype, device, turned=item.name in turned)
        if tensor.is_floating_point():
            taken[item.name] = nn.Parameter(tensor, requires_grad=trainable)
        else:
            kept.append(item.SerializeToString())
        item.ClearField("raw_data")
    rest = [onnx.TensorProto.FromString(raw) for raw in kept]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(rest)
    return taken


def _attach(root: nn.Module, name: str, parameter: nn.Parameter) -> tuple[nn.Module, str]:
    """Register a parameter under its initialiser name (dots make sub-modules, as in state_dict) -> owner and last name.

    A name that collides with a module's own attributes gets one that cannot.
    """
    *path, last = (p or "_" for p in name.split("."))
    owner: nn.Module = root
    for part in path:
        child = owner._modules.get(part)
        if child is None:
            if hasattr(owner, part):
                return _attach_flat(root, name, parameter)
            child = nn.Module()
            owner.add_module(part, child)
        owner = child
    if hasattr(owner, last):
        return _attach_flat(root, name, parameter)
    owner.register_parameter(last, parameter)
    return owner, last


def _attach_flat(root: nn.Module, name: str, parameter: nn.Parameter) -> tuple[nn.Module, str]:
    """The name without dots and with underscores behind, until nothing of the module is called so."""
    last = name.replace(".", "/") + "_"
    while hasattr(root, last):
        last += "_"
    root.register_parameter(last, parameter)
    return root, last
