"""Memory that the ranks of one host hold together: one copy of the weights a host, however many GPUs read it.

It is a file without a name (`memfd`), which the others open through /proc/PID/fd of the first rank. It takes nothing of
/dev/shm, which is small in containers, and nothing of it stays behind, whichever way a rank ends.
"""

from __future__ import annotations

import logging
import mmap
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from weakref import finalize

import torch
from torch import Tensor

from auto_LiRPA.errors import ContractError
from auto_LiRPA.parallel.groups import Group

log = logging.getLogger(__name__)

_PAGE = mmap.ALLOCATIONGRANULARITY
_ALIGNMENT = 256  # of a block
_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one block. ``own``: this rank fills them, and no other of its host; nobody changes them after that."""

    memory: Tensor
    own: bool


@dataclass(frozen=True, slots=True)
class _Offer:
    """A rank's file, as the others of its host find it. ``token`` stands at its beginning."""

    host: tuple[str, ...]
    process: int
    file: int
    token: bytes


class HostMemory:
    """The memory of one store. All ranks of its group make the same calls in the same order; each is a collective."""

    def __init__(self, group: Group, device: torch.device) -> None:
        """``device``: what the memory is copied to; for a GPU it is pinned."""
        self._group, self._device = group, device
        self._refused, self._met = group.size == 1, False
        self._file: _File | None = None
        self._index, self._count = 0, 1  # among the ranks of this host
        self._end, self._pieces = _PAGE, 0  # the first page is the token's

    def pieces(self, sizes: Sequence[int]) -> list[Piece] | None:
        """Memory for blocks of so many bytes, dealt to the ranks of a host in turn; None: each rank makes its own.

        All ranks get the same answer. Where there are pieces, `filled` is to be called once this rank's are filled.

        Raises:
            ContractError: ranks ask for different sizes, so these are not the same weights.
        """
        why = None if self._met or self._refused else self._meet()
        if self._refused:
            return None
        starts = list(accumulate((_rounded(size, _ALIGNMENT) for size in sizes), initial=0))
        own = [(self._pieces + i) % self._count == self._index for i in range(len(sizes))]
        memory: Tensor | None = None
        if why is None:
            try:
                memory = self._extended(starts, sizes, own)
            except (OSError, RuntimeError) as error:
                why = str(error)
        if not self._all_have_it(why, starts[-1]):
            memory = None  # before the file is cut off where it lay
            self._give_up(why)
            return None
        assert memory is not None
        self._end += _rounded(starts[-1], _PAGE)
        self._pieces += len(sizes)
        cuts = zip(starts, sizes, own, strict=False)
        return [Piece(memory[start : start + size], mine) for start, size, mine in cuts]

    def filled(self) -> None:
        """This rank has filled its pieces; returns when all ranks have."""
        self._group.barrier()

    def _all_have_it(self, why: str | None, size: int) -> bool:
        answers = self._group.numbers([float(why is None), float(size)])
        if len({answer[1] for answer in answers}) > 1:
            raise ContractError("mode offload: ranks place different weights, or in a different order")
        return all(answer[0] for answer in answers)

    def _give_up(self, why: str | None) -> None:
        """From now on every rank keeps copies of its own; what lies in the memory so far stays there."""
        told = next(line for line in self._group.objects(why) if line is not None)
        if self._group.rank == 0:
            log.warning("parallel.mode offload: every rank keeps its own copy of weights on the host: %s", told)
        self._refused = True
        if self._file is not None:
            self._file.cut(self._end)

    def _meet(self) -> str | None:
        """Find the ranks of this host and open the file of the first of them; why it cannot be opened, if so."""
        self._met = True
        own: _File | None = None
        offer, why = None, None
        try:
            own = _File.new()
            offer = own.offer()
        except OSError as error:
            why = str(error)
        offers = self._group.objects(offer)
        hosts = [None if one is None else one.host for one in offers]
        if None not in hosts and len(set(hosts)) == len(hosts):
            self._refused = True  # no two ranks share a host
        if offer is None or self._refused:
            return why
        here = [rank for rank, host in enumerate(hosts) if host == offer.host]
        self._index, self._count = here.index(self._group.rank), len(here)
        first = offers[here[0]]
        assert first is not None
        try:
            self._file = own if self._index == 0 else _File.of(first)
        except OSError as error:
            why = str(error)
        return why

    def _extended(self, starts: Sequence[int], sizes: Sequence[int], own: Sequence[bool]) -> Tensor:
        """The file's next bytes, mapped and pinned. They exist: writing to them cannot fail any more.

        Raises:
            OSError, RuntimeError: there is not enough memory, or it cannot be mapped or pinned.
        """
        assert self._file is not None
        self._file.reach(self._end + starts[-1])
        for start, size, mine in zip(starts, sizes, own, strict=False):
            if mine:
                self._file.allocate(self._end + start, size)
        return self._file.mapped(self._end, starts[-1], self._device)


class _File:
    """Memory that has a descriptor and no name: it is gone with the last process that holds it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        finalize(self, os.close, descriptor).atexit = False

    @classmethod
    def new(cls) -> _File:
        """An empty one. Raises OSError: there are none here."""
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memfd_create")
        return cls(os.memfd_create("weights"))

    @classmethod
    def of(cls, offer: _Offer) -> _File:
        """Another process's. Raises OSError: it is not to be reached from here."""
        found = cls(os.open(f"/proc/{offer.process}/fd/{offer.file}", os.O_RDWR | os.O_CLOEXEC))
        if os.pread(found._descriptor, _TOKEN_BYTES, 0) != offer.token:
            raise OSError(f"process {offer.process} is another one here")
        return found

    def offer(self) -> _Offer:
        """What `of` needs."""
        token = os.urandom(_TOKEN_BYTES)
        os.pwrite(self._descriptor, token, 0)
        return _Offer(_host(), os.getpid(), self._descriptor, token)

    def reach(self, end: int) -> None:
        """Make the file as long as this; there is no memory behind it yet."""
        os.ftruncate(self._descriptor, end)

    def allocate(self, start: int, size: int) -> None:
        """Get the memory now, in which case it cannot fail, or kill the process, when it is written to."""
        os.posix_fallocate(self._descriptor, start, size)

    def cut(self, end: int) -> None:
        """Give back what lies behind."""
        os.ftruncate(self._descriptor, end)

    def mapped(self, start: int, size: int, device: torch.device) -> Tensor:
        """Bytes of the file as a tensor, for a GPU pinned; they are let go with the last tensor over them."""
        held = mmap.mmap(self._descriptor, size, offset=start)
        view = memoryview(held)  # what the tensors hold
        memory = torch.frombuffer(view, dtype=torch.uint8)
        if device.type == "cuda":
            _pin(memory, device)
            finalize(view, _unpin, held, memory.data_ptr(), device, os.getpid()).atexit = False
        return memory


def _host() -> tuple[str, ...]:
    """What only processes have in common that see each other's files under the same numbers."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return socket.gethostname(), file.read().strip(), os.readlink("/proc/self/ns/pid")


def _pin(memory: Tensor, device: torch.device) -> None:
    runtime = torch.cuda.cudart()
    with torch.cuda.device(device):
        code = runtime.cudaHostRegister(memory.data_ptr(), memory.numel(), 1)  # for all contexts
    if code != runtime.cudaError.success:
        _forget_error(device)
        raise OSError(f"cudaHostRegister refuses {memory.numel()} bytes (error {int(code)})")


def _unpin(held: mmap.mmap, address: int, device: torch.device, process: int) -> None:
    """Copies may be under way. ``held``: is unmapped after this.

    In a forked process there is no device, and while a graph is captured nothing may be waited for: then the pages stay
    pinned until the process ends, which does no harm but to take memory.
    """
    if os.getpid() != process or torch.cuda.is_current_stream_capturing():
        return
    try:
        torch.cuda.synchronize(device)
        runtime = torch.cuda.cudart()
        if runtime.cudaHostUnregister(address) != runtime.cudaError.success:
            _forget_error(device)
    except RuntimeError as error:
        log.debug("weights stay pinned: %s", error)


def _forget_error(device: torch.device) -> None:
    """What has failed and was handled is not to be told by the next kernel's launch, which looks for errors."""
    try:
        torch.ones(1, device=device)
    except RuntimeError as error:
        log.debug("handled: %s", error)


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
