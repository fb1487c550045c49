"""The planner's memory model asked for a mode's name, any number of ranks, and meshes that keep weights within a host.

"fsdp+rows/8": groups of 8 ranks (a host's) share the weights, and the groups share the rows: a mesh. The model is
`auto_LiRPA.parallel.memory_model`, which `abcrown --plan` prints; seconds are not its business here: with one operation
a second and no launches its "seconds" are the operations of the busiest rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from auto_LiRPA.bounds.dry_run import Asked, ShapeGraph, examine
from auto_LiRPA.parallel.axes import resolve_axes
from auto_LiRPA.parallel.memory_model import H100, Facts, Prediction, predict
from auto_LiRPA.parallel.settings import ParallelSettings
from benchmarks.parallel.measuring import settings_of
from benchmarks.parallel.scaled.kinds import Predicted

HOST = 8  # GPUs of a host


def settings_for(mode: str, world: int, tile: int | str, block_mib: float) -> ParallelSettings:
    """The `parallel:` section of a mode's name at a number of ranks; MODE/N: groups of N ranks share the weights."""
    name, _, group = mode.partition("/")
    if world == 1:
        return settings_of("offload" if name.startswith("offload") else "single", tile, block_mib)
    size = int(group) if group else 0
    if not size or world <= size:
        return settings_of("tp" if name == "tp+rows" else name, tile, block_mib)
    settings = settings_of(name, tile, block_mib)
    return replace(settings, mesh={"weights": size, "rows": world // size})


@dataclass(frozen=True)
class Shapes:
    """A network on tensors without data: the function that makes it, and its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def graph(self) -> Any:
        """Make it."""
        return self.function(*self.arguments)


# Dry runs of large nets take a second each, and every mode and number of ranks asks for the same ones.
_FOUND: dict[tuple[Any, ...], Facts] = {}
COUNTING = replace(H100, flops=1.0, launch=0.0)  # a machine whose seconds of computing are operations


def counted(
    make: Shapes,
    mode: str,
    world: int,
    *,
    tile: int | str,
    block_mib: float,
    asked: Asked | None = None,
    iterations: int = 0,
) -> Predicted:
    """The model of one placement: a CROWN pass, and so many iterations of alpha-CROWN."""
    settings = settings_for(mode, world, tile, block_mib)
    axes = resolve_axes(settings, world)
    ranks = axes.weights if settings.mode == "tp" else 1
    found = facts(make, settings.tile_rows, settings.block_mib, ranks, asked)
    return as_predicted(predict(found, axes, world, COUNTING), {"crown": 1, "alpha": iterations})


def as_predicted(found: Prediction, times: Mapping[str, int]) -> Predicted:
    """A prediction that was made for the machine `COUNTING`, with so many times the work of each kind."""
    every = [(found.work[kind], count) for kind, count in times.items() if count]
    return Predicted(
        peak=found.peak,
        parts=found.parts,
        work=sum(count * work.compute_s for work, count in every),
        gathered=sum(count * work.gathered for work, count in every),
        exchanged=sum(count * work.exchanged for work, count in every),
        copied=sum(count * work.copied for work, count in every),
        calls=sum(count * work.calls for work, count in every),
    )


def facts(make: Shapes, tile: int | str, block_mib: float, ranks: int, asked: Asked | None = None) -> Facts:
    """Counts of a dry run on the rank's own slices, where tp has ``ranks`` of them."""
    key = (make, tile, block_mib, ranks, repr(asked))
    if key not in _FOUND:
        shapes = ShapeGraph.of(make.graph(), ParallelSettings(tile_rows=tile, block_mib=block_mib))  # type: ignore[arg-type]
        _FOUND[key] = examine(shapes.split(ranks), torch.float32, asked or Asked())
    return _FOUND[key]
