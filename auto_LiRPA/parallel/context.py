"""The one object that knows which rank this is and where it computes (DESIGN 4). Created once, passed down."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from auto_LiRPA.errors import ConfigError, OutOfTime, RankUnreachable
from auto_LiRPA.parallel.axes import AXES, Axes, Mode, resolve_axes
from auto_LiRPA.parallel.block_buffers import BlockBuffers
from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.groups import Group, Observer, alone
from auto_LiRPA.parallel.recording import NoRecorder, Recorder, make_recorder
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import ParameterStore

# Where an observer watches, it says which rank the others wait for; the library's own timeout would only say that.
_WATCHED = timedelta(days=1)

Decide = Callable[[ParallelSettings, Group], ParallelSettings]


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """Rank, world size, device and settings of this process. World size 1 is an ordinary context, not another path.

    ``world``: all ranks; ``weights``, ``rows``, ``domains``: those that share what the name says. ``mode``: where
    weights live, never `auto`.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    settings: ParallelSettings
    counters: Counters
    mode: Mode
    world: Group
    weights: Group
    rows: Group
    domains: Group
    lockstep: bool  # ranks that share weights do different work: every one makes as many passes as the busiest
    seconds_left: Callable[[], float] | None = None  # until the run's deadline; None: there is none
    buffers: BlockBuffers = field(default_factory=BlockBuffers)  # of all stores: at most two fetched blocks are alive
    recorder: Recorder = field(default_factory=NoRecorder)  # of passes that are made again and again

    @classmethod
    def single(
        cls, device: torch.device | str = "cpu", settings: ParallelSettings | None = None
    ) -> DistributedContext:
        """A context of one rank on ``device``.

        Raises:
            ConfigError: the settings need several ranks.
        """
        settings = settings or ParallelSettings()
        counters = Counters()
        one = alone(counters)
        axes = resolve_axes(settings, 1)
        place = torch.device(device)
        if place.type == "cuda" and place.index is None and torch.cuda.is_available():
            place = torch.device("cuda", torch.cuda.current_device())  # as tensors that lie there say it
        buffers = BlockBuffers()
        return cls(
            0, 1, 0, place, settings, counters, axes.mode, one, one, one, one, lockstep=False,
            buffers=buffers, recorder=make_recorder(place, counters, buffers),
        )  # fmt: skip

    @classmethod
    def from_env(
        cls,
        settings: ParallelSettings | None = None,
        device: torch.device | str = "cpu",
        observer: Observer | None = None,
        decide: Decide | None = None,
    ) -> DistributedContext:
        """The context that `torchrun`'s environment describes; joins the other ranks if there are any.

        Args:
            device: what to compute on; ``cuda`` becomes the GPU of this rank's number on its machine (with fewer GPUs
                than ranks, and gloo, one of theirs).
            observer: told of every collective.
            decide: asked by all ranks together what ``mode: auto`` means; None: whole weights on every rank.

        Raises:
            ConfigError: settings that contradict each other or the number of ranks; fewer GPUs than ranks.
        """
        settings = settings or ParallelSettings()
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            if decide is not None and settings.mode == "auto":
                settings = decide(settings, alone(Counters()))
            context = cls.single(device, settings)
            context.apply_threads(1)
            return context
        axes = resolve_axes(settings, world)
        rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
        place = torch.device(device)
        if place.type == "cuda":
            _refuse_sharing(settings)
            place = torch.device("cuda", local % torch.cuda.device_count())
            torch.cuda.set_device(place)
        if observer is not None:
            observer.entering("join", tuple(range(world)))
        _join(settings, place, rank, world, None if observer is None else _WATCHED)
        counters = Counters()
        through_host = place.type == "cuda" and settings.backend == "gloo"
        everyone = Group(rank, world, counters, tuple(range(world)), dist.group.WORLD, observer, through_host)
        if decide is not None and settings.mode == "auto":
            if observer is not None:
                observer.left()
            settings = decide(settings, everyone)
            axes = resolve_axes(settings, world)
            if observer is not None:
                observer.entering("join", tuple(range(world)))
        weights, rows, domains = (_axis_group(axis, axes, everyone) for axis in AXES)
        if observer is not None:
            observer.left()
        buffers = BlockBuffers()
        context = cls(
            rank,
            world,
            local,
            place,
            settings,
            counters,
            axes.mode,
            everyone,
            weights,
            rows,
            domains,
            lockstep=axes.joined and axes.weights > 1 and (axes.rows > 1 or axes.domains > 1),
            buffers=buffers,
            recorder=make_recorder(place, counters, buffers),
        )
        context.apply_threads(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        return context

    def alone(self) -> DistributedContext:
        """This rank by itself, with whole weights: for work that the ranks do not share."""
        one = alone(self.counters)
        return replace(self, mode="single", world=one, weights=one, rows=one, domains=one, lockstep=False)

    def within_domains(self) -> DistributedContext:
        """For work on this rank's own domains: with it only those that share its weights, tile by tile."""
        one = alone(self.counters)
        return replace(self, world=self.weights, rows=one, domains=one)

    def with_new_buffers(self) -> DistributedContext:
        """The same ranks, with buffers as large as the blocks that are announced from now on."""
        buffers = BlockBuffers(self.buffers.debug)
        return replace(self, buffers=buffers, recorder=make_recorder(self.device, self.counters, buffers))

    def apply_threads(self, local_ranks: int) -> None:
        """Set this process's CPU threads: a matrix product's bits depend on their number, so it is never left open."""
        threads = self.settings.threads
        torch.set_num_threads(max(1, _cores() // local_ranks) if threads == "auto" else threads)

    def at(self, step: str, patient: bool = False) -> None:
        """Say what this rank does from now on, for the line that is written if it is lost.

        Args:
            patient: it works by itself, and the others wait for it for as long as the deadline allows.
        """
        if self.world.observer is not None:
            self.world.observer.at(step, patient)

    def check_time(self) -> None:
        """For work that this rank does by itself: called often enough that no long pass outlives the deadline.

        Raises:
            OutOfTime: the deadline has passed.
        """
        if self.out_of_time():
            raise OutOfTime("the time limit was reached within a bounding pass")

    def out_of_time(self) -> bool:
        """Whether the deadline has passed by this rank's own clock. What ranks do together has to be agreed on."""
        return self.seconds_left is not None and self.seconds_left() <= 0

    def make_store(self) -> ParameterStore:
        """The parameter store of this mode."""
        from auto_LiRPA.parallel.stores import make_store

        return make_store(self)

    def close(self) -> None:
        """Leave the other ranks, once all want to: one may still be reading weights in this one's memory.

        Ranks that have gone without a word are not waited for.
        """
        self.buffers.announce(())  # which lets go of the last weights
        self.recorder.forget()
        if self.world_size > 1 and dist.is_initialized():
            with suppress(RankUnreachable):
                self.world.barrier()
            dist.destroy_process_group()


def _refuse_sharing(settings: ParallelSettings) -> None:
    """NCCL wants a GPU for each rank. Through gloo, which copies to the host and back, ranks may share one.

    Raises:
        ConfigError: this machine has fewer GPUs than ranks.
    """
    gpus, ranks = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if ranks > gpus and settings.backend != "gloo":
        raise ConfigError(
            f"{ranks} ranks on a machine with {gpus} GPU{'s'[: gpus != 1]}: NCCL needs one for each; start {gpus} at"
            " most, or let them share with parallel.backend = gloo, which is slow"
        )


def _join(
    settings: ParallelSettings, device: torch.device, rank: int, world: int, timeout: timedelta | None
) -> None:
    """Meet the other ranks. GPUs talk through NCCL and their hosts through gloo, which no GPU has to be waited for.

    ``timeout``: of the library itself; None: ``timeout_s``.
    """
    if dist.is_initialized():
        return
    wanted = settings.backend
    if wanted == "nccl" and device.type != "cuda":
        raise ConfigError("parallel.backend = nccl: needs GPUs; use gloo or auto on CPUs")
    nccl = device.type == "cuda" and wanted != "gloo"
    more: dict[str, Any] = {"device_id": device} if nccl else {}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        more["store"] = _agent_store(timeout or timedelta(seconds=settings.timeout_s))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if nccl else "gloo",
        rank=rank,
        world_size=world,
        timeout=timeout or timedelta(seconds=settings.timeout_s),
        **more,
    )


def _agent_store(timeout: timedelta) -> Store:
    """The launcher's store; ranks that were started anew do not see what those before them left in it."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
    return PrefixStore(f"ranks/{attempt}", store)


def _axis_group(axis: str, axes: Axes, world: Group) -> Group:
    """This rank's group along an axis. Every rank makes all groups, in the same order, as torch asks."""
    every = sorted({axes.members(axis, rank, world.size) for rank in range(world.size)})
    mine = axes.members(axis, world.rank, world.size)
    if len(mine) == 1:
        return alone(world.counters)
    if len(mine) == world.size:
        return world
    handle: Any = None
    for members in every:
        made = dist.new_group(list(members))
        handle = made if members == mine else handle
    return replace(world, rank=mine.index(world.rank), size=len(mine), members=mine, handle=handle)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
