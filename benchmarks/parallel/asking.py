"""What a configuration of experiments 2 to 5 asks: its network, its input box, its method and its sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from auto_LiRPA.bounds.methods import Method
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.parallel_maps import ColumnLinear
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import ParameterStore
from auto_LiRPA.values import Box
from benchmarks.parallel import building, measuring
from complete_verifier.compat.hooks import hooks_of
from complete_verifier.config import Config, CustomizedRef, load_config, parse_reference
from complete_verifier.driver.choices import bound_settings
from complete_verifier.driver.input_regions import input_region
from complete_verifier.driver.networks import read_network
from complete_verifier.spec.compile import read_vnnlib

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = "benchmarks"  # the folder of VNN-COMP families in the configurations' paths


@dataclass(frozen=True, slots=True)
class Asked:
    """One configuration. ``size``: hidden neurons and layers of a network that is drawn; None: it is in ``onnx``."""

    name: str
    config: Config
    folder: Path
    size: tuple[int, int] | None
    onnx: Path | None

    @property
    def method(self) -> Method:
        """How it is bounded."""
        return Method.named(self.config.solver.bound_prop_method)

    @property
    def bounds(self) -> BoundSettings:
        """Settings of every pass."""
        return bound_settings(self.config)

    def settings(self, mode: str, tile: str | None, block_mib: float | None) -> ParallelSettings:
        """The configuration's section `parallel` in a mode; None: what the configuration says."""
        own = self.config.parallel.settings()
        return measuring.settings_of(
            mode, own.tile_rows if tile is None else tile, own.block_mib if block_mib is None else block_mib
        )

    def built(self, context: DistributedContext) -> tuple[Graph, ParameterStore]:
        """This rank's network. One that is drawn is made layer by layer, so that no device ever holds all of it."""
        if self.size is not None:
            return building.mlp(context, *self.size)
        hooks = hooks_of(self.config, self.folder)
        found = read_network(self.config, hooks, context, self.onnx, None)
        return found.graph, found.store

    def region(self, graph: Graph, device: torch.device) -> Box:
        """The input box, rounded outwards."""
        path = self.config.specification.vnnlib_path
        assert path is not None
        found = input_region(read_vnnlib(ROOT / path), graph.input_shape, torch.float32, device)
        assert isinstance(found, Box)
        return found


def asked(path: Path, data: Path | None = None, hidden: int | None = None) -> Asked:
    """Read a configuration.

    Args:
        data: where the VNN-COMP families are, instead of where the configuration says.
        hidden: the width of a network that is drawn, instead of the configuration's.

    Raises:
        ConfigError: it cannot be read, or names no network.
    """
    config = load_config(["--config", str(path)]).config
    name = path.stem.partition("_")[2]
    if config.model.onnx_path is not None:
        given = Path(config.model.onnx_path)
        if data is not None and SHARED in given.parts:
            given = data.joinpath(*given.parts[given.parts.index(SHARED) + 1 :])
        return Asked(name, config, path.parent, None, given)
    assert config.model.name is not None
    reference = parse_reference(config.model.name)
    assert isinstance(reference, CustomizedRef), "experiments 2 to 5 draw their networks or read ONNX files"
    width, depth = (int(number) for number in reference.args)
    if hidden is not None:
        name, width = name.replace(f"{width}x", f"{hidden}x"), hidden
    return Asked(name, config, path.parent, (width, depth), None)


def whole_bytes(graph: Graph) -> int:
    """Bytes of all weights that this rank's graph refers to (under tp those of its slices)."""
    found = {id(weight): weight for weight in graph.weights}
    return sum(weight.numel * weight.dtype.itemsize for weight in found.values())


def pairs(graph: Graph) -> list[str]:
    """Under tp, the layers between which neurons are spread: "first > last" by the names of their nodes."""
    found, start = [], None
    for node in graph.nodes:
        if isinstance(node.op, ColumnLinear):
            start = node.name
        elif node.name.endswith("/part") and start is not None:
            found.append(f"{start} > {node.name.removesuffix('/part')}")
    return found


def in_mode(context: DistributedContext, settings: ParallelSettings) -> DistributedContext:
    """The context with other sizes of tiles."""
    return replace(context, settings=settings)
