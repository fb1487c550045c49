"""Ranks that work together along one axis, and all that they may say to each other (DESIGN 4, 5).

Collectives only copy, take a least or greatest value, or add integers, so that no bit depends on their number; `total`
alone adds floats, and belongs to tensor parallelism. Every rank of a group makes the same sequence of calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from auto_LiRPA.errors import MemoryShort, RankUnreachable
from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.shortage import is_out_of_memory, words_of

T = TypeVar("T")

WEIGHTS = "weights"  # the kind of collective that fetches blocks

# torch 2.13 has given it another name
_gather_into = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class Observer(Protocol):
    """Told of every collective: what watches for ranks that hang, and what tests delay."""

    def entering(self, kind: str, members: tuple[int, ...]) -> None:
        """This rank is about to take part in a collective of these ranks of the world."""

    def left(self) -> None:
        """It has come back (on a GPU: the collective is in the stream's queue)."""

    def at(self, step: str, patient: bool = False) -> None:
        """What this rank does from now on. ``patient``: the others wait for it for as long as the deadline allows."""


@dataclass(frozen=True, slots=True)
class Group:
    """``size`` ranks, of which this is number ``rank``; ``members``: their numbers in the world. Size 1: no-ops.

    ``through_host``: tensors of a GPU are copied to the host and back, as gloo knows no other memory.
    """

    rank: int
    size: int
    counters: Counters
    members: tuple[int, ...] = (0,)
    handle: Any = None  # torch.distributed.ProcessGroup
    observer: Observer | None = None
    through_host: bool = False

    # -- tensors ---------------------------------------------------------------------------------------------------
    def gather(self, part: Tensor) -> Tensor:
        """Every rank's tensor, all of one shape and dtype: ``[size, *shape]``."""
        if self.size == 1:
            return part.unsqueeze(0)
        with _within_reach("gather"):
            out = torch.empty(self.size, *part.shape, dtype=part.dtype, device=part.device)
        self.gather_into(out, part)
        return out

    def gather_into(self, out: Tensor, part: Tensor, kind: str = "gather") -> None:
        """`gather` into contiguous memory of ``size`` times as many bytes. On a GPU it runs in the current stream."""
        if self.size == 1:
            out.view(-1).view(torch.uint8).copy_(part.contiguous().view(-1).view(torch.uint8))
            return
        target = out.view(-1).view(torch.uint8)
        with self._counted(kind, target.numel(), out.device):
            mine = part.contiguous().view(-1).view(torch.uint8)
            with self._reachable(target) as there:
                _gather_into(there, mine.to(there.device), group=self.handle)

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Rank ``source``'s content, in place."""
        if self.size > 1:
            with self._counted("broadcast", tensor.numel() * tensor.element_size(), tensor.device):
                with self._reachable(tensor.view(-1).view(torch.uint8)) as there:
                    dist.broadcast(there, self.members[source], group=self.handle)
        return tensor

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place: floats, in an order that depends on their number (tensor parallelism only)."""
        if self.size > 1:
            with self._counted("reduce", tensor.numel() * tensor.element_size(), tensor.device):
                with self._reachable(tensor) as there:
                    dist.all_reduce(there, group=self.handle)
        return tensor

    def least(self, tensor: Tensor) -> Tensor:
        """Least value of all ranks, element by element; a NaN stays one."""
        return tensor if self.size == 1 else self.gather(tensor).amin(0)

    def greatest(self, tensor: Tensor) -> Tensor:
        """Greatest value of all ranks, element by element; a NaN stays one."""
        return tensor if self.size == 1 else self.gather(tensor).amax(0)

    def send(self, tensor: Tensor, to: int) -> None:
        """Give a contiguous tensor to rank ``to``, which calls `receive`."""
        with self._counted("send", tensor.numel() * tensor.element_size(), tensor.device):
            with self._reachable(tensor.view(-1).view(torch.uint8)) as there:
                dist.send(there, self.members[to], group=self.handle)

    def receive(self, tensor: Tensor, source: int) -> Tensor:
        """Fill a contiguous tensor with what rank ``source`` sends."""
        with self._counted("receive", tensor.numel() * tensor.element_size(), tensor.device):
            with self._reachable(tensor.view(-1).view(torch.uint8)) as there:
                dist.recv(there, self.members[source], group=self.handle)
        return tensor

    # -- numbers and small objects: over the host's channel, no GPU is waited for --------------------------------------
    def numbers(self, values: Sequence[float]) -> list[list[float]]:
        """Every rank's numbers (whole ones are exact up to 2^53), equally many each."""
        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64)
        out = torch.empty(self.size, len(mine), dtype=torch.float64)
        with self._counted("agree", out.numel() * 8, out.device):
            _gather_into(out.view(-1), mine, group=self.handle)
        found: list[list[float]] = out.tolist()
        return found

    def numbers_later(self, values: Sequence[float]) -> Callable[[], list[list[float]]]:
        """`numbers` that are on their way: what is returned waits for them, and has to be called once.

        Until then a rank may do anything of its own; collectives of the group keep their order.
        """
        if self.size == 1:
            only = [list(values)]
            return lambda: only
        mine = torch.tensor(values, dtype=torch.float64)
        out = torch.empty(self.size, len(mine), dtype=torch.float64)
        with self._converted("agree"):
            work = _gather_into(out.view(-1), mine, group=self.handle, async_op=True)

        def arrived() -> list[list[float]]:
            with self._counted("agree", out.numel() * 8, out.device):
                work.wait()
            found: list[list[float]] = out.tolist()
            return found

        return arrived

    def some(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return flag if self.size == 1 else any(row[0] > 0 for row in self.numbers([float(flag)]))

    def every(self, flag: bool) -> bool:
        """Whether all ranks say so."""
        return flag if self.size == 1 else all(row[0] > 0 for row in self.numbers([float(flag)]))

    def largest(self, value: float) -> float:
        """The largest of all ranks' numbers."""
        return value if self.size == 1 else max(row[0] for row in self.numbers([value]))

    def smallest(self, value: float) -> float:
        """The smallest of all ranks' numbers."""
        return value if self.size == 1 else min(row[0] for row in self.numbers([value]))

    def objects(self, mine: T) -> list[T]:
        """Every rank's object (pickled): for reports and rare decisions."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        with self._counted("objects", 0, torch.device("cpu")):
            dist.all_gather_object(found, mine, group=self.handle)
        return found

    def same_object(self, mine: T, source: int = 0) -> T:
        """Rank ``source``'s object (pickled)."""
        if self.size == 1:
            return mine
        found: list[Any] = [mine]
        with self._counted("objects", 0, torch.device("cpu")):
            dist.broadcast_object_list(found, self.members[source], group=self.handle, device=torch.device("cpu"))
        shared: T = found[0]
        return shared

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.numbers([0.0])

    @contextmanager
    def _reachable(self, tensor: Tensor) -> Iterator[Tensor]:
        """The tensor where the library reads and writes it; what it then holds is the tensor's content afterwards."""
        if not (self.through_host and tensor.is_cuda):
            yield tensor
            return
        there = tensor.cpu()
        yield there
        tensor.copy_(there)

    @contextmanager
    def _counted(self, kind: str, size: int, device: torch.device) -> Iterator[None]:
        if self.observer is not None:
            self.observer.entering(kind, self.members)
        try:
            with self._converted(kind), self.counters.collective(kind, size, device):
                yield
        finally:
            if self.observer is not None:
                self.observer.left()

    @contextmanager
    def _converted(self, kind: str) -> Iterator[None]:
        try:
            with _within_reach(kind):
                yield
        except RuntimeError as error:
            raise RankUnreachable(f"{kind} of ranks {_listed(self.members)} broke off: {_first_line(error)}") from error


@contextmanager
def _within_reach(kind: str) -> Iterator[None]:
    """Around what the other ranks wait for: memory that runs out here is this rank's own end, not a lost rank."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryShort(kind, words_of(error)) from error


def _listed(members: Sequence[int]) -> str:
    return ", ".join(map(str, members)) if len(members) <= 8 else f"{members[0]} to {members[-1]}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def alone(counters: Counters) -> Group:
    """The group of one rank."""
    return Group(0, 1, counters)
