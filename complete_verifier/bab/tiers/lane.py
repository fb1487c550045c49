"""Copies between host and device on a stream of their own, so that they run while the next round is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

Rows = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Arriving:
    """Rows on their way to host memory; `wait` before they are read."""

    rows: Rows
    done: torch.cuda.Event | None

    def wait(self) -> Rows:
        """The rows, once they are there."""
        if self.done is not None:
            self.done.synchronize()
        return self.rows


class Lane:
    """A side stream on CUDA; on a CPU every copy is a plain one and nothing has to be waited for.

    Work of the main stream that was queued before a copy is done before it. What the main stream does later may
    overlap, up to the next `join`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last: torch.cuda.Event | None = None

    def join(self) -> None:
        """Let the main stream wait (the host does not) for all copies so far."""
        if self._last is not None:
            torch.cuda.current_stream(self._device).wait_event(self._last)
            self._last = None

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Queue what is within on the side stream, behind everything that the main stream has been given so far."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
            self._last = self._stream.record_event()

    def to_device(self, rows: Sequence[Tensor]) -> Rows:
        """Host rows on the device; within `beside` the copy of pinned rows waits for nobody."""
        return tuple(row.to(self._device, non_blocking=True) for row in rows)

    def to_host(self, rows: Sequence[Tensor]) -> Arriving:
        """Rows of the device on their way to host memory (pinned on CUDA)."""
        if self._stream is None:
            return Arriving(tuple(rows), None)
        with self.beside():
            targets = tuple(torch.empty(row.shape, dtype=row.dtype, pin_memory=True) for row in rows)
            for target, row in zip(targets, rows, strict=True):
                target.copy_(row, non_blocking=True)
                row.record_stream(self._stream)  # its memory must not be given to others before the copy
        return Arriving(targets, self._last)
