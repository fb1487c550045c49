"""How ranks are laid out: which of them share weights, rows and domains (DESIGN 2.5, 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from auto_LiRPA.errors import ConfigError
from auto_LiRPA.parallel.settings import ParallelSettings

Mode = Literal["single", "fsdp", "tp", "offload"]
AXES = ("weights", "rows", "domains")


@dataclass(frozen=True, slots=True)
class Axes:
    """Size of each axis. ``joined``: the axes lie over the same ranks (all of them), else they are a mesh's dimensions.

    Axes that are joined have ranks that share weights and do different work, so all have to make the same gathers.
    """

    mode: Mode
    weights: int
    rows: int
    domains: int
    joined: bool

    def members(self, axis: str, rank: int, world: int) -> tuple[int, ...]:
        """The ranks that ``rank`` works together with along ``axis``."""
        size = getattr(self, axis)
        if size == 1:
            return (rank,)
        if self.joined:
            return tuple(range(world))
        stride = 1
        for name in AXES[AXES.index(axis) + 1 :]:
            stride *= getattr(self, name)
        first = rank - (rank // stride % size) * stride
        return tuple(first + i * stride for i in range(size))


def resolve_axes(settings: ParallelSettings, world: int) -> Axes:
    """The axes that settings mean on ``world`` ranks.

    ``mode: auto`` that nobody has resolved before keeps whole weights on every rank. Without a mesh every axis that is
    sharded lies over all ranks; a mesh names the axes' sizes, whose product is the number of ranks.

    Raises:
        ConfigError: they contradict each other.
    """
    mode: Mode = "single" if settings.mode == "auto" else settings.mode
    if world == 1:
        if settings.mesh and any(size != 1 for size in settings.mesh.values()):
            raise ConfigError(f"parallel.mesh = {settings.mesh}: for several ranks; start them with abcrown --nproc N")
        return Axes(mode, 1, 1, 1, True)
    if settings.mesh:
        return _of_mesh(settings, mode, world)
    if settings.mode in ("single", "offload") and "shard" not in (settings.rows, settings.domains):
        if settings.mode == "single" or (settings.rows, settings.domains) == ("replicate", "replicate"):
            raise ConfigError(
                f"parallel.mode = {settings.mode}: {world} ranks would all do the same; set parallel.rows or"
                " parallel.domains to shard, or the mode to auto"
            )
    if mode == "tp":
        for name in ("rows", "domains"):
            if getattr(settings, name) == "shard":
                hint = f"{{weights: 2, {name}: 2}}"
                raise ConfigError(f"parallel.{name} = shard: with mode tp only in a mesh, such as {hint}")
        return Axes(mode, world, 1, 1, True)
    weights = world if mode == "fsdp" else 1
    rows = world if settings.rows != "replicate" else 1
    domains = world if settings.domains != "replicate" else 1
    return Axes(mode, weights, rows, domains, True)


def _of_mesh(settings: ParallelSettings, mode: Mode, world: int) -> Axes:
    mesh = settings.mesh or {}
    unknown = sorted(set(mesh) - set(AXES))
    if unknown:
        raise ConfigError(f"parallel.mesh: {unknown[0]} is no axis; expected some of {', '.join(AXES)}")
    sizes = [mesh.get(name, 1) for name in AXES]
    product = sizes[0] * sizes[1] * sizes[2]
    if min(sizes) < 1 or product != world:
        raise ConfigError(f"parallel.mesh = {mesh}: its sizes have the product {product}, but there are {world} ranks")
    if sizes[0] > 1 and mode in ("single", "offload"):
        raise ConfigError(f"parallel.mesh: weights = {sizes[0]} needs parallel.mode fsdp or tp, not {mode}")
    for name, size in zip(AXES[1:], sizes[1:], strict=True):
        wanted = getattr(settings, name)
        if (wanted == "shard" and size == 1) or (wanted == "replicate" and size > 1):
            raise ConfigError(f"parallel.mesh: {name} = {size} contradicts parallel.{name} = {wanted}")
    return Axes(mode, sizes[0], sizes[1], sizes[2], False)
