"""The two pieces of device memory that fetched blocks pass through: one is multiplied while the next one arrives.

All stores of a process share them, so that no more than two fetched blocks are ever alive. Which fetches are made, and
in which order, follows from the calls alone: ranks that make the same calls make the same fetches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import ref

import torch
from torch import Tensor

from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.store import Block, Weight

MOST_ALIVE = 2
_NAN = 0xFF  # a number whose bytes are all 255 is no number in every floating-point type


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Part(ABC):
    """One block that lies elsewhere: rows ``start:stop``, needed on ``device``.

    ``bytes``: of the buffer that `fetch` fills; the block, and maybe padding behind it.
    """

    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    bytes: int

    @property
    def together(self) -> bool:
        """Whether a fetch is a collective, which all ranks that share the weight have to make."""
        return False

    @abstractmethod
    def fetch(self, buffer: Tensor) -> None:
        """Fill ``bytes`` bytes of device memory, on a GPU in the current stream."""


class FetchedWeight(Weight):
    """A weight whose blocks pass through buffers. Gradients never reach what they were copied from."""

    def __init__(
        self, shape: tuple[int, ...], parts: Sequence[Part], buffers: BlockBuffers, counters: Counters, prefetch: bool
    ) -> None:
        self.shape = shape
        self.dtype, self.device = parts[0].dtype, parts[0].device
        self._parts, self._buffers = tuple(parts), buffers
        self._counters, self._prefetch = counters, prefetch
        buffers.announce(parts)

    @property
    def recordable(self) -> bool:
        return not any(part.together for part in self._parts)

    def blocks(self) -> Iterator[Block]:
        """As `Weight.blocks`. Where weights are sharded each block is a collective of those that share them."""
        return self._buffers.blocks(self._parts, self._counters, self._prefetch)

    def blocks_where(self, needed: Callable[[int, int], bool]) -> Iterator[Block]:
        """As `Weight.blocks_where`."""
        if any(part.together for part in self._parts):
            return super().blocks_where(needed)
        parts = [part for part in self._parts if needed(part.start, part.stop)]
        return self._buffers.blocks(parts, self._counters, self._prefetch)


@dataclass(slots=True, eq=False)
class _Slot:
    """A piece of memory. ``holds``: the fetch whose block is in it; ``used``: somebody multiplies by it."""

    holds: object | None = None
    used: bool = False
    memory: Tensor | None = None
    ready: torch.cuda.Event | None = None  # the fetch is done
    free: torch.cuda.Event | None = None  # what read the last block is done
    released: int = 0


@dataclass(frozen=True, slots=True)
class _Ahead:
    """The first block of the weight that is expected next."""

    part: Part
    slot: _Slot
    token: object


@dataclass(slots=True, eq=False)
class BlockBuffers:
    """Two slots. ``debug``: a block that is given back is overwritten with NaN, so that its late use shows.

    On a GPU fetches run in a stream of their own. It waits for what reads a slot before that is filled again, and who
    takes a block waits for its fetch; the host waits for neither.
    """

    debug: bool = False
    _slots: list[_Slot] = field(default_factory=lambda: [_Slot() for _ in range(MOST_ALIVE)])
    _side: torch.cuda.Stream | None = None
    _stale_side: bool = True  # the side stream has not yet waited for the weights' own memory to be filled
    _largest: int = 0
    _clock: int = 0
    # the last time this one (by id) was in use, that one came; parts are not kept alive by it, see `_expect`
    _after: dict[int, Callable[[], Part | None]] = field(default_factory=dict)
    _last: int | None = None
    _ahead: _Ahead | None = None
    _looks_ahead: bool = True

    def announce(self, parts: Sequence[Part]) -> None:
        """These blocks will be asked for: memory is made for the largest of all, once."""
        self._largest = max([self._largest, *(part.bytes for part in parts)])
        self._stale_side = True
        self._drop_ahead()
        self._after.clear()  # holds nothing of weights that are gone
        self._last = None

    def blocks(self, parts: Sequence[Part], counters: Counters, prefetch: bool) -> Iterator[Block]:
        """The blocks in order. While one is in use the next one is fetched, where a slot is free.

        An iterator that is given up half-way gives its slots back and fetches nothing more.

        Raises:
            RuntimeError: two other blocks are in use, so this one would be the third.
        """
        coming = self._expected(parts[0]) if parts else None
        slot: _Slot | None = None
        try:
            for i, part in enumerate(parts):
                if coming is None or coming[0].holds is not coming[1]:
                    # nothing was fetched ahead, or somebody else needed the slot
                    found = self._free_slot(evict=True)
                    if found is None:
                        raise RuntimeError("a third block was asked for while two are in use")
                    coming = self._fetch(found, part, counters)
                slot = self._take(coming[0])
                coming = None
                if prefetch and i + 1 < len(parts):
                    ahead = self._free_slot(evict=False)
                    coming = None if ahead is None else self._fetch(ahead, parts[i + 1], counters)
                elif prefetch:
                    self._look_ahead(part, counters)
                yield Block(part.start, part.stop, _as_block(slot, part))
                self._give_back(slot)
                slot = None
        finally:
            if slot is not None:
                self._give_back(slot)
            if coming is not None and coming[0].holds is coming[1]:
                coming[0].holds = None

    # -- the next weight -----------------------------------------------------------------------------------------------
    def _expected(self, first: Part) -> tuple[_Slot, object] | None:
        """What was fetched ahead, if it is the block that is asked for now."""
        self._expect(first)
        ahead = self._ahead
        if ahead is None or ahead.part is not first or ahead.slot.holds is not ahead.token:
            self._drop_ahead()
            return None
        self._ahead = None
        return ahead.slot, ahead.token

    def _expect(self, part: Part) -> None:
        """Note that a part came after the last one.

        Weights that are gone shall free their memory: so nobody keeps them here. But where a fetch is a collective,
        all ranks have to guess alike, whenever each of them drops a weight: those stay until others are announced.
        """
        if self._last is not None and part.device.type == "cuda":
            self._after[self._last] = (lambda: part) if part.together else ref(part)

    def _look_ahead(self, part: Part, counters: Counters) -> None:
        """While a weight's last block is in use: fetch the block that came after it the last time.

        Passes ask for the same weights in the same order again and again; a wrong guess costs one fetch. All ranks
        that make the same calls guess alike.
        """
        self._last = id(part)
        known = self._after.get(self._last) if self._looks_ahead else None
        expected = None if known is None else known()
        if expected is None:
            return
        slot = self._free_slot(evict=False)
        if slot is not None:
            self._ahead = _Ahead(expected, *self._fetch(slot, expected, counters))

    def _drop_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.slot.holds is ahead.token:
            ahead.slot.holds = None

    # -- recorded passes -----------------------------------------------------------------------------------------------
    def prepare_recording(self) -> None:
        """Before a recording, whose own memory would otherwise be taken for slots that were not needed so far."""
        if self._side is not None:
            for slot in self._slots:
                self._allocated(slot, self._largest, self._side.device)

    def addresses(self) -> Iterator[int]:
        """Where fetched blocks appear: a recorded pass reads them there."""
        return (slot.memory.data_ptr() for slot in self._slots if slot.memory is not None)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within, the current stream records what it is asked to do, and the fetches with it.

        Recorded events and others must not wait for each other: nothing is carried over, at either end.
        """
        self._drop_ahead()
        if self._last is not None:
            self._after.pop(self._last, None)  # what follows the pass is not part of it
        self._forget_events()
        if self._side is not None:
            # now, so that the first fetch need not wait for what comes before it in the pass
            self._side.wait_stream(torch.cuda.current_stream(self._side.device))
            self._stale_side = False
        try:
            yield
            if self._side is not None:
                torch.cuda.current_stream(self._side.device).wait_stream(self._side)
        finally:
            self._drop_ahead()
            self._forget_events()

    @contextmanager
    def replaying(self, device: torch.device) -> Iterator[None]:
        """Within, a recorded pass is put into the current stream; it uses both slots."""
        if self._side is None:
            yield
            return
        stream = torch.cuda.current_stream(device.index)
        self._drop_ahead()
        stream.wait_stream(self._side)
        yield
        for slot in self._slots:
            if slot.memory is not None:
                slot.free = stream.record_event(slot.free)

    @contextmanager
    def not_ahead(self) -> Iterator[None]:
        """Within, no block is fetched for the weight that comes next: a recorded pass fetches for itself."""
        self._looks_ahead, before = False, self._looks_ahead
        try:
            yield
        finally:
            self._looks_ahead = before

    def _forget_events(self) -> None:
        for slot in self._slots:
            slot.ready = slot.free = None
        self._stale_side = True

    # -- slots -------------------------------------------------------------------------------------------------------
    def _free_slot(self, evict: bool) -> _Slot | None:
        """The slot that was given back longest ago; with ``evict`` also one that is only fetched ahead."""
        free = [slot for slot in self._slots if slot.holds is None]
        if not free and evict:
            free = [slot for slot in self._slots if not slot.used]
        return min(free, key=lambda slot: slot.released, default=None)

    def _fetch(self, slot: _Slot, part: Part, counters: Counters) -> tuple[_Slot, object]:
        """Start filling a slot -> the slot and the token by which it is recognised."""
        memory = self._memory(slot, part)
        token = object()
        slot.holds = token
        alive = sum(s.holds is not None for s in self._slots)
        counters.live_blocks_max = max(counters.live_blocks_max, alive)
        if part.device.type != "cuda":
            part.fetch(memory)
            return slot, token
        side = self._side_stream(part.device)
        if slot.free is not None:
            side.wait_event(slot.free)
        with torch.cuda.stream(side):
            part.fetch(memory)
            slot.ready = side.record_event(slot.ready)
        return slot, token

    def _memory(self, slot: _Slot, part: Part) -> Tensor:
        """``part.bytes`` bytes of the slot's memory."""
        return self._allocated(slot, part.bytes, part.device)[: part.bytes]

    def _allocated(self, slot: _Slot, size: int, device: torch.device) -> Tensor:
        """The slot's memory, made or enlarged if need be."""
        memory = slot.memory
        if memory is None or memory.numel() < size or memory.device != device:
            if slot.ready is not None:  # an abandoned fetch may still be writing to what is freed here
                torch.cuda.current_stream(device).wait_event(slot.ready)
            slot.memory = None
            with torch.inference_mode(False):  # or it could not be filled outside of inference mode
                slot.memory = memory = torch.empty(max(size, self._largest), dtype=torch.uint8, device=device)
            if device.type == "cuda":  # whoever had this memory before may still be reading it
                slot.free = torch.cuda.current_stream(device).record_event()
        return memory

    def _side_stream(self, device: torch.device) -> torch.cuda.Stream:
        if self._side is None or self._side.device != device:
            self._side, self._stale_side = torch.cuda.Stream(device), True
        if self._stale_side:
            self._side.wait_stream(torch.cuda.current_stream(device))
            self._stale_side = False
        return self._side

    def _take(self, slot: _Slot) -> _Slot:
        slot.used = True
        if slot.ready is not None:
            assert slot.memory is not None
            torch.cuda.current_stream(slot.memory.get_device()).wait_event(slot.ready)
        return slot

    def _give_back(self, slot: _Slot) -> None:
        self._clock += 1
        slot.holds, slot.used, slot.released = None, False, self._clock
        assert slot.memory is not None
        if self.debug:
            slot.memory.fill_(_NAN)
        if slot.memory.is_cuda:
            # by its index: asked for by a device object, a stream costs the host as much as a copy
            slot.free = torch.cuda.current_stream(slot.memory.get_device()).record_event(slot.free)


def _as_block(slot: _Slot, part: Part) -> Tensor:
    assert slot.memory is not None
    size = int(torch.Size(part.shape).numel()) * part.dtype.itemsize
    return slot.memory[:size].view(part.dtype).view(part.shape)
