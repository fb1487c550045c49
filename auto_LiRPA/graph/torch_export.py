"""torch modules -> Graph: exported to ONNX in memory, without their weights, which stay the module's own tensors."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from auto_LiRPA.errors import ModelError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.graph.simplify import folded_structure
from auto_LiRPA.graph.source import GraphSource, Recipe
from auto_LiRPA.parallel.store import LocalStore, ParameterStore

if TYPE_CHECKING:
    from onnx import ModelProto

# What tracing and translating a user's forward may raise (torch's own export errors are RuntimeErrors).
_EXPORT_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError, ArithmeticError)
_CHATTERING_LOGGERS = ("torch.onnx", "torch.export", "torch._export", "torch._dynamo", "torch.fx", "onnxscript")
# Two right computations of the same network part by rounding only; samples that mix part by far more.
_AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-6}
_SMALL = 8192  # entries; what the folding library itself calls small


def graph_from_module(
    module: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    store: ParameterStore,
    *,
    check: bool = True,
) -> Graph:
    """The graph of a module, sharing its parameters; see `source_from_module`."""
    return source_from_module(module, example_input, lambda: store, check=check).graph


def source_from_module(
    module: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    make_store: Callable[[], ParameterStore] = LocalStore,
    *,
    check: bool = True,
) -> GraphSource:
    """Export a module once; the source then gives its graph with the parameters of the moment.

    Weights of the graph are the module's parameters themselves (or views), so optimiser steps are seen and gradients
    arrive. The module is exported in evaluation mode and for one sample; its modes are restored.

    Args:
        module: takes one tensor with the batch in front and returns one.
        example_input: such a tensor (only its first sample is used), alone or in a tuple.
        make_store: makes the store that holds the weights.
        check: compare the graph with the module on a few samples; finds forwards that mix samples.

    Raises:
        ModelError: the module cannot be exported or disagrees with its graph. UnsupportedOperator: see `read_model`.
    """
    place = f"module {type(module).__name__}"
    example = _one_sample(example_input, place)
    with _evaluation_mode(module), torch.no_grad():
        proto, extra = _export(module, example, place)
        own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
        constants = {name: t for name, t in extra.items() if name not in own}
        names = [name for name in extra if name in own]
        recipe = Recipe(proto, place, example.dtype, example.device, batch_fixed=False)
        source = GraphSource(recipe, _tensors(module, names, constants), make_store, compare_contents=True)
        graph = source.graph
        if check:
            _compare(module, graph, example, place, source.store.device or example.device)
    return source


def _tensors(
    module: nn.Module, names: list[str], constants: Mapping[str, Tensor]
) -> Callable[[], Mapping[str, Tensor]]:
    """The module's tensors by name, as they are when asked for (an attribute may be given another tensor)."""

    def current() -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = dict(constants)
        for name in names:
            owner, _, last = name.rpartition(".")
            found[name] = getattr(module.get_submodule(owner), last)
        return found

    return current


def _one_sample(example: Tensor | tuple[Tensor, ...], place: str) -> Tensor:
    if isinstance(example, tuple | list):
        if len(example) != 1:
            raise ModelError(f"{place}: {len(example)} example inputs; networks with exactly one input are supported")
        example = example[0]
    if not isinstance(example, Tensor) or not example.is_floating_point() or example.dim() == 0 or len(example) == 0:
        raise ModelError(f"{place}: the example input has to be a floating-point tensor with the batch in front")
    # a plain tensor: subclasses (bounded inputs) would follow the exporter into the graph
    return example.detach().as_subclass(Tensor)[:1].clone()


def _export(module: nn.Module, example: Tensor, place: str) -> tuple[ModelProto, dict[str, Tensor]]:
    """ONNX structure without weights, and the tensors that stand for them by name."""
    try:
        with _silence(), _no_collection():
            program = torch.export.export(module, (example,), strict=False)
            exported: Any = torch.onnx.export(program, (example,), dynamo=True, optimize=False, verbose=False)
            tensors = _take_weights(module, exported.model)
            return folded_structure(exported.model), tensors
    except _EXPORT_ERRORS as error:
        raise ModelError(f"{place}: cannot be exported to ONNX ({_reason(error)})") from error


def _take_weights(module: nn.Module, model: Any) -> dict[str, Tensor]:
    """Turn initialisers into inputs: then nothing can fold them into copies, and none is ever serialised (2 GB limit).

    Small constants that are no parameter or buffer of the module stay.
    """
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    tensors: dict[str, Tensor] = {}
    for name, value in list(model.graph.initializers.items()):
        raw = getattr(value.const_value, "raw", None)
        if not isinstance(raw, Tensor) or (name not in own and raw.numel() <= _SMALL):
            continue
        tensors[name] = raw
        del model.graph.initializers[name]
        value.const_value = None
        model.graph.inputs.append(value)
    return tensors


def _reason(error: BaseException) -> str:
    """The most telling line of an exporter's error: it wraps the cause several times."""
    lines: list[str] = []
    current: BaseException | None = error
    while current is not None and len(lines) < 10:
        text = [line.strip() for line in str(current).splitlines() if line.strip()]
        lines.append(text[0] if text else type(current).__name__)
        current = current.__cause__
    return lines[-1][:300]


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every sub-module's own mode afterwards."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: the exporter's first use imports 1200 modules, and a tenth of that was spent on searching
    their objects for cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _silence() -> Iterator[None]:
    """No warnings and notes of the exporter: none of them concerns our user."""
    noisy: list[logging.Logger | logging.Handler] = [logging.getLogger(name) for name in _CHATTERING_LOGGERS]
    noisy.extend(logging.getLogger("torch").handlers)
    before = [(speaker, speaker.level) for speaker in noisy]
    for speaker in noisy:
        speaker.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for speaker, level in before:
            speaker.setLevel(level)


def _compare(module: nn.Module, graph: Graph, example: Tensor, place: str, device: torch.device) -> None:
    """The graph and the module on three samples; on one where the module takes no more.

    A second draw decides, because a jump (Sign) may magnify rounding in the first.
    """
    if example.is_meta or any(p.is_meta for p in module.parameters()):
        return
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        noise = torch.randn((3, *example.shape[1:]), generator=generator).to(example)
        samples = example + noise * (0.1 + example.abs())
        try:
            wanted = module(samples)
        except _EXPORT_ERRORS:
            samples = samples[:1]
            wanted = module(samples)
        if _agree(evaluate(graph, samples.to(device)), wanted):
            return
    raise ModelError(
        f"{place}: its graph gives other outputs than the module itself; does its forward mix the samples of a batch?"
    )


def _agree(ours: Tensor, wanted: Tensor) -> bool:
    if ours.numel() != wanted.numel():
        return False
    ours, wanted = ours.reshape(-1), wanted.reshape(-1).to(ours)
    finite = wanted.isfinite()
    if not bool(finite.any()):
        return True
    difference = (ours - wanted)[finite].abs().max()
    return bool(difference <= _AGREEMENT.get(ours.dtype, 1e-2) * (1 + wanted[finite].abs().max()))
