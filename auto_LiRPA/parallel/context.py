"""The one object that knows which rank this is and where it computes (DESIGN 4). Created once, passed down."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from auto_LiRPA.errors import ConfigError, OutOfTime
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import LocalStore, ParameterStore


@dataclass(slots=True)
class Counters:
    """What a run did, for its statistics: tiles bounded, most blocks alive, collectives by kind."""

    tiles: int = 0
    live_blocks_max: int = 0
    collectives: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """Rank, world size, device and settings of this process. World size 1 is an ordinary context, not another path."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    settings: ParallelSettings
    counters: Counters
    seconds_left: Callable[[], float] | None = None  # until the run's deadline; None: there is none

    @classmethod
    def single(
        cls, device: torch.device | str = "cpu", settings: ParallelSettings | None = None
    ) -> DistributedContext:
        """A context of one rank on ``device``."""
        return cls(0, 1, 0, torch.device(device), settings or ParallelSettings(), Counters())

    @classmethod
    def from_env(cls, settings: ParallelSettings, device: torch.device | str = "cpu") -> DistributedContext:
        """The context that `torchrun`'s environment describes.

        Raises:
            ConfigError: more than one rank, or a mode that needs more than the local store: not available yet.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world > 1:
            raise ConfigError(
                f"WORLD_SIZE = {world}: several ranks are not supported yet; start one process (without torchrun)"
            )
        if settings.mode not in ("single", "auto"):
            raise ConfigError(f"parallel.mode = {settings.mode}: not supported yet; use single or auto")
        if settings.rows == "shard" or settings.domains == "shard" or settings.mesh:
            raise ConfigError("parallel.rows/domains = shard and parallel.mesh need several ranks: use auto")
        context = cls.single(device, settings)
        context.apply_threads()
        return context

    def apply_threads(self) -> None:
        """Set this process's CPU threads: a matrix product's bits depend on their number, so it is never left open."""
        threads = self.settings.threads
        torch.set_num_threads(_cores() if threads == "auto" else threads)

    def check_time(self) -> None:
        """Called once per tile, so that no long pass outlives the deadline.

        Raises:
            OutOfTime: the deadline has passed.
        """
        if self.seconds_left is not None and self.seconds_left() <= 0:
            raise OutOfTime("the time limit was reached within a bounding pass")

    def make_store(self) -> ParameterStore:
        """The parameter store of this mode."""
        return LocalStore(self.settings.block_mib)

    def share(self, count: int) -> range:
        """Indices of ``range(count)`` (tiles, domain tiles) that this rank computes: round-robin."""
        return range(self.rank, count, self.world_size)

    def gather_tiles(self, parts: Mapping[int, Tensor], count: int) -> list[Tensor]:
        """All tiles' results in tile order, each rank having computed those of ``share(count)``."""
        return [parts[i] for i in range(count)]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
