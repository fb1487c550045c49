"""What a run did, for its statistics: tiles bounded, most blocks alive, collectives by kind."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

_MOST_PENDING = 256  # timings of a GPU that are not looked at yet
_SAMPLE = 8  # of fetches, which are many and alike, every so-manieth is timed: events cost the host more than a copy


@dataclass(slots=True)
class Traffic:
    """All collectives of one kind: ``bytes`` are those of the gathered or reduced tensor."""

    calls: int = 0
    bytes: int = 0
    replayed_calls: int = 0
    timed_calls: int = 0
    timed_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all calls that were not replayed; where only some were timed, as if the others had taken as long."""
        return self.timed_seconds * (self.calls - self.replayed_calls) / max(1, self.timed_calls)


Counts = list[tuple[Traffic, int, int]]  # calls and bytes of each kind


@dataclass(slots=True)
class Counters:
    """Counts of one rank. ``seconds`` of collectives are the device's on a GPU, the host's on a CPU."""

    tiles: int = 0
    replays: int = 0  # tiles whose work was recorded before
    idle_tiles: int = 0  # passes made only so that every rank makes the same sequence of gathers
    live_blocks_max: int = 0
    collectives: dict[str, Traffic] = field(default_factory=dict)
    _pending: deque[tuple[Traffic, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=deque)
    _recording: bool = False

    @contextmanager
    def collective(self, kind: str, size: int, device: torch.device) -> Iterator[None]:
        """Count one collective of ``size`` bytes; what is within is timed."""
        traffic = self.count(kind, size)
        if self._recording:  # a recorded event gives no time
            yield
            return
        traffic.timed_calls += 1
        if device.type != "cuda":
            began = time.monotonic()
            yield
            traffic.timed_seconds += time.monotonic() - began
            return
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        yield
        stop.record()
        self._pending.append((traffic, start, stop))
        if len(self._pending) > _MOST_PENDING:
            self._take(wait=False)

    @contextmanager
    def fetch(self, kind: str, size: int, device: torch.device) -> Iterator[None]:
        """As `collective`, for copies of blocks: only some are timed."""
        known = self.collectives.get(kind)
        if device.type == "cuda" and known is not None and known.calls % _SAMPLE:
            self.count(kind, size)
            yield
            return
        with self.collective(kind, size, device):
            yield

    def count(self, kind: str, size: int) -> Traffic:
        """Count one call without timing it."""
        traffic = self.collectives.setdefault(kind, Traffic())
        traffic.calls += 1
        traffic.bytes += size
        return traffic

    @contextmanager
    def recording(self) -> Iterator[Counts]:
        """Within, work is only recorded. What is given is filled with its traffic at the end."""
        before = {kind: (one.calls, one.bytes) for kind, one in self.collectives.items()}
        counts: Counts = []
        self._recording = True
        try:
            yield counts
        finally:
            self._recording = False
            for kind, one in self.collectives.items():
                calls, size = before.get(kind, (0, 0))
                if one.calls > calls:
                    counts.append((one, one.calls - calls, one.bytes - size))
                    one.calls, one.bytes = calls, size

    def replayed(self, counts: Counts) -> None:
        """Recorded work was done once more."""
        self.replays += 1
        for traffic, calls, size in counts:
            traffic.calls += calls
            traffic.replayed_calls += calls
            traffic.bytes += size

    def settle(self) -> None:
        """Add the timings that a GPU has not given yet; waits for it."""
        self._take(wait=True)

    def _take(self, wait: bool) -> None:
        """Oldest first, up to the first that is not there yet."""
        while self._pending:
            traffic, start, stop = self._pending[0]
            if wait:
                stop.synchronize()
            elif not stop.query():
                return
            traffic.timed_seconds += start.elapsed_time(stop) / 1000
            self._pending.popleft()
