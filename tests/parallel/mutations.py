"""Faults that sharing out work can have, planted in the processes of a launch; each says how often it struck.

``CLEAN`` runs the same tasks without a fault. Faults strike on the ranks that their function chooses, and only within.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from auto_LiRPA.bounds import tile_sums
from auto_LiRPA.bounds.ascent import ascend
from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.operators import parallel_maps
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.parallel import sharded_store, sharing
from auto_LiRPA.parallel.block_buffers import BlockBuffers
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.groups import Group
from complete_verifier.bab.schedule_synchronous import Synchronous
from complete_verifier.bab.store import DomainStore
from tests.parallel import matrix
from tests.parallel.matrix import Found, Layout, Task
from tests.parallel.patches import replaced_everywhere

Struck = Callable[[], None]
Fault = Callable[[int, Struck], AbstractContextManager[None]]
CLEAN = "none"


@dataclass(frozen=True)
class Case:
    """A fault, and what is computed with it."""

    fault: str
    layout: Layout
    task: Task


@dataclass(frozen=True)
class Answer:
    """What a rank found. ``struck``: how often the fault changed something."""

    found: Found
    struck: int


def run(case: Case) -> Answer:
    """One task with one fault."""
    times = [0]

    def struck() -> None:
        times[0] += 1
        if times[0] == 1:
            sys.stderr.write("the fault has struck\n")
            sys.stderr.flush()

    rank = DistributedContext.from_env(case.layout.settings(case.task.net)).rank
    with FAULTS[case.fault](rank, struck):
        found = matrix.compute(case.layout, case.task)
    return Answer(found, times[0])


@contextmanager
def nothing(rank: int, struck: Struck) -> Iterator[None]:
    yield


def _gathers(choose: Callable[[int, int], bool], change: str) -> Fault:
    """A gather of results of which ``choose(rank, number)`` is left out, made twice, or read in another order."""

    @contextmanager
    def fault(rank: int, struck: Struck) -> Iterator[None]:
        original = Group.gather
        number = [0]

        def gather(self: Group, part: Tensor) -> Tensor:
            if self.size == 1:
                return original(self, part)
            number[0] += 1
            if not choose(rank, number[0]):
                return original(self, part)
            struck()
            if change == "dropped":
                return torch.stack([part] * self.size)
            if change == "doubled":
                original(self, part)
            every = original(self, part)
            return every.flip(0) if change == "in another order" else every

        with patch.object(Group, "gather", gather):
            yield

    return fault


@contextmanager
def weights_gathered_in_another_order(rank: int, struck: Struck) -> Iterator[None]:
    """The parts of a block, on rank 1."""
    original = sharded_store.ShardedPart.fetch

    def fetch(self: Any, buffer: Tensor) -> None:
        original(self, buffer)
        if rank == 1:
            struck()
            half = len(buffer) // 2
            buffer.copy_(torch.cat([buffer[half:], buffer[:half]]))

    with patch.object(sharded_store.ShardedPart, "fetch", fetch):
        yield


@contextmanager
def bias_on_all_ranks(rank: int, struck: Struck) -> Iterator[None]:
    """Before the reduce, so that it counts as often as there are ranks."""
    original_values = parallel_maps.Exit.bias_values

    def values(self: Any) -> Tensor | None:
        bias = original_values(self)
        if bias is None:
            return None
        struck()
        return bias * self.ranks.size

    original_dot = parallel_maps.Exit.bias_dot

    def dot(self: Any, coef: Tensor) -> Tensor | None:
        found = original_dot(self, coef)
        if found is None:
            return None
        struck()
        return found * self.ranks.size

    with patch.object(parallel_maps.Exit, "bias_values", values), patch.object(parallel_maps.Exit, "bias_dot", dot):
        yield


@contextmanager
def relu_before_the_reduce(rank: int, struck: Struck) -> Iterator[None]:
    """The values behind a pair's last weights are clamped while they are partial sums."""
    original = parallel_maps.Exit.interval

    def interval(self: Any, *inputs: Any) -> Any:
        struck()
        clamped = replace(inputs[0], lower=inputs[0].lower.clamp_min(0), upper=inputs[0].upper.clamp_min(0))
        return original(self, clamped)

    with patch.object(parallel_maps.Exit, "interval", interval):
        yield


@contextmanager
def reduce_left_out(rank: int, struck: Struck) -> Iterator[None]:
    """Each rank goes on with its own partial sum of coefficients."""

    def transpose(self: Any, coef: Tensor) -> tuple[Tensor, ...]:
        struck()
        return (coef,)

    with patch.object(parallel_maps.Enter, "transpose", transpose):
        yield


@contextmanager
def stale_slopes_on_one_rank(rank: int, struck: Struck) -> Iterator[None]:
    """Rank 1 does not take the steps of its own slopes."""

    def lazy(variables: Sequence[Tensor], *rest: Any) -> None:
        if rank != 1:
            ascend(variables, *rest)
        elif variables:
            struck()

    with replaced_everywhere(ascend, lazy):
        yield


@contextmanager
def domain_skipped(rank: int, struck: Struck) -> Iterator[None]:
    """Rank 1 loses a domain on its way into the store."""
    original = DomainStore.add
    lost: list[int] = []

    def add(self: Any, domains: Any, margin: Tensor) -> None:
        if rank == 1 and len(domains) > 1 and not lost:
            struck()
            lost.append(1)
            rest = torch.arange(1, len(domains))
            domains, margin = domains.pick(rest), margin[rest]
        original(self, domains, margin)

    with patch.object(DomainStore, "add", add):
        yield


@contextmanager
def job_skipped(rank: int, struck: Struck) -> Iterator[None]:
    """Rank 1 leaves the last parent of a round out of its jobs, and says that it has dealt with them all."""
    original = Synchronous.run

    def run_round(self: Any, work: Any, first_id: int, number: int) -> Any:
        share = original(self, work, first_id, number)
        if rank == 1 and share.left is not None and len(share.left) > 1:
            struck()
            share.left = share.left.pick(torch.arange(len(share.left) - 1))
        return share

    with patch.object(Synchronous, "run", run_round):
        yield


@contextmanager
def adjoints_added_in_rank_order(rank: int, struck: Struck) -> Iterator[None]:
    """First each rank's own tiles, then the ranks: the sum that an all-reduce would give."""

    def gather(self: Any, present: int, first: int) -> None:
        struck()
        of_ranks = self._rows.gather(torch.stack(self._packed).sum(0))
        self._packed = []
        for part in of_ranks:
            self._sum = part.clone() if self._sum is None else self._sum.add_(part)

    with patch.object(tile_sums.TileSums, "_gather", gather):
        yield


@contextmanager
def blocks_kept(rank: int, struck: Struck) -> Iterator[None]:
    """A layer keeps the blocks of its weight (views of the buffers) instead of using each before the next one."""
    original = Linear.transpose

    def transpose(self: Any, coef: Tensor) -> tuple[Tensor, ...]:
        blocks = list(self.weight.blocks())
        if len(blocks) < 3:
            return original(self, coef)
        struck()
        return (sum(coef[..., b.start : b.stop] @ b.data for b in blocks),)

    with patch.object(Linear, "transpose", transpose):
        yield


@contextmanager
def blocks_kept_in_debug_mode(rank: int, struck: Struck) -> Iterator[None]:
    """The same where a block that was given back is overwritten with NaN."""
    original = BlockBuffers.blocks

    def blocks(self: Any, *arguments: Any) -> Any:
        self.debug = True
        return original(self, *arguments)

    with patch.object(BlockBuffers, "blocks", blocks), blocks_kept(rank, struck):
        yield


@contextmanager
def shard_is_a_view(rank: int, struck: Struck) -> Iterator[None]:
    """What a rank keeps of a weight is a slice of the whole weight's storage."""

    class Torch:
        """Torch, whose zeros are the beginning of something twice as large."""

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def zeros(self, size: int, **kind: Any) -> Tensor:
            struck()
            return torch.zeros(2 * size, **kind)[:size].contiguous()

    with patch.object(sharded_store, "torch", Torch()):
        yield


@contextmanager
def idle_pass_left_out(rank: int, struck: Struck) -> Iterator[None]:
    """A rank without a tile does not make the gathers that the others make."""
    original = sharing.each_tile

    def each_tile(context: DistributedContext, *rest: Any, **more: Any) -> list[Tensor]:
        if context.lockstep:
            struck()
        return original(replace(context, lockstep=False), *rest, **more)

    with replaced_everywhere(original, each_tile):
        yield


@contextmanager
def dealt_from_rank_zero(rank: int, struck: Struck) -> Iterator[None]:
    """Results are put together as if rank 0 had every list's first tile."""
    original = sharing.owner

    def owner(group: Group, position: int, first: int = 0) -> int:
        if first % group.size:
            struck()
        return original(group, position)

    with replaced_everywhere(original, owner):
        yield


@contextmanager
def own_clock(rank: int, struck: Struck) -> Iterator[None]:
    """Rank 1 is out of time at its second tile and leaves by itself, without the others' agreement."""
    original = sharing.check_time_together
    calls = [0]

    def check(context: DistributedContext) -> None:
        calls[0] += 1
        if rank == 1 and calls[0] == 2:
            struck()
            raise OutOfTime(sharing.OUT_OF_TIME)

    with replaced_everywhere(original, check):
        yield


def _second_of_rank_one(rank: int, number: int) -> bool:
    return rank == 1 and number == 2


FAULTS: dict[str, Fault] = {
    CLEAN: nothing,
    "collective dropped": _gathers(_second_of_rank_one, "dropped"),
    "collective doubled": _gathers(_second_of_rank_one, "doubled"),
    "results in another order": _gathers(lambda rank, number: rank == 1, "in another order"),
    "weights in another order": weights_gathered_in_another_order,
    "bias on all ranks": bias_on_all_ranks,
    "relu before the reduce": relu_before_the_reduce,
    "reduce left out": reduce_left_out,
    "stale alpha shard": stale_slopes_on_one_rank,
    "domain skipped": domain_skipped,
    "job skipped": job_skipped,
    "adjoints in rank order": adjoints_added_in_rank_order,
    "block kept": blocks_kept,
    "block kept, debug mode": blocks_kept_in_debug_mode,
    "shard is a view": shard_is_a_view,
    "idle pass left out": idle_pass_left_out,
    "own clock": own_clock,
    "dealt from rank 0": dealt_from_rank_zero,
}
