"""Slots on the disk: each batch that is spilled becomes one file, which is gone as soon as nobody needs it.

A file is mapped when it is written and unlinked at once: its pages are read when a row is taken, the system may drop
them from memory before that, and nothing is left behind however the process ends.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from auto_LiRPA.errors import ConfigError
from complete_verifier.bab.tensor_files import map_tensors, write_tensors
from complete_verifier.bab.tiers.keys import UNUSED

RUN_SLOTS = 4096


@dataclass(slots=True)
class _Run:
    """One mapped file: ``rows`` of it, of which ``alive`` are still here."""

    start: int
    rows: int
    alive: int
    fields: tuple[Tensor, ...]
    bytes: int


class Runs:
    """The tier on the disk. Rows are host tensors; slots of a file that is gone are given out again."""

    def __init__(self, like: Sequence[Tensor], folder: Path | None, run_slots: int = RUN_SLOTS) -> None:
        self._parent, self._run_slots = folder, run_slots
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._kinds = tuple((t.dtype, tuple(t.shape[1:])) for t in like)
        self.slot_bytes = max(1, sum(math.prod(shape) * dtype.itemsize for dtype, shape in self._kinds))
        self._runs: list[_Run | None] = []  # by slot // run_slots
        self.capacity = 0
        self.bytes = 0

    def put(self, rows: Sequence[Tensor], count: int) -> Tensor:
        """Write rows to files; their slots ``[count]``."""
        slots = []
        for begin in range(0, count, self._run_slots):
            part = tuple(row[begin : begin + self._run_slots] for row in rows)
            slots.append(self._write(part, min(self._run_slots, count - begin)))
        return torch.cat(slots) if slots else torch.zeros(0, dtype=torch.int64)

    def remove(self, slots: Tensor) -> tuple[Tensor, ...]:
        """The rows of these slots, in this order. A file without rows is given up."""
        out = tuple(torch.empty(len(slots), *shape, dtype=dtype) for dtype, shape in self._kinds)
        if len(slots) == 0:
            return out
        ordered, position = slots.sort()
        numbers, counts = (ordered // self._run_slots).unique_consecutive(return_counts=True)
        begin = 0
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            run = self._runs[number]
            assert run is not None
            index, places = ordered[begin : begin + count] - run.start, position[begin : begin + count]
            for target, field in zip(out, run.fields, strict=True):
                target.index_copy_(0, places, field[index])
            run.alive -= count
            if run.alive == 0:
                self._runs[number] = None
                self.bytes -= run.bytes
            begin += count
        return out

    def pieces(self, rank: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """The rows of each file whose ``rank`` (by slot) is not `UNUSED`, with their slots."""
        for run in self._runs:
            if run is None:
                continue
            used = (rank[run.start : run.start + run.rows] != UNUSED).nonzero().squeeze(-1)
            index = used.cpu()
            yield used + run.start, tuple(field[index] for field in run.fields)

    def close(self) -> None:
        """Give up all files and the folder."""
        self._runs.clear()
        self.capacity = self.bytes = 0
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _write(self, rows: Sequence[Tensor], count: int) -> Tensor:
        number = next((k for k, run in enumerate(self._runs) if run is None), len(self._runs))
        try:
            path = Path(self._place()) / f"run-{number:06d}.safetensors"
            written = write_tensors(path, {f"{k:04d}": row for k, row in enumerate(rows)}, durable=False)
            mapped = map_tensors(path)
            path.unlink()
        except OSError as error:
            place, why = self._parent or tempfile.gettempdir(), os.strerror(error.errno or 0)
            raise ConfigError(
                f"{place}: sub-problems that memory cannot hold cannot be written there ({why}); free some space, or"
                " name another folder for temporary files by TMPDIR"
            ) from error
        run = _Run(number * self._run_slots, count, count, tuple(mapped[k] for k in sorted(mapped)), written.bytes)
        if number == len(self._runs):
            self._runs.append(run)
        else:
            self._runs[number] = run
        self.capacity = len(self._runs) * self._run_slots
        self.bytes += run.bytes
        return torch.arange(run.start, run.start + count)

    def _place(self) -> str:
        """The folder of this search's files; made when the first one is written, removed at the end, on errors too."""
        if self._folder is None:
            if self._parent is not None:
                self._parent.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix="abcrown-domains-", dir=self._parent)
        return self._folder.name
