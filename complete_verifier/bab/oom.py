"""Out of memory within a round: no domain is lost, the batch is halved, and the search goes on (DESIGN 7)."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from auto_LiRPA.parallel.shortage import is_out_of_memory, words_of

__all__ = ["Done", "MemoryGuard", "is_out_of_memory"]

_LOG = logging.getLogger(__name__)
B = TypeVar("B", bound=Sized)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """A step that went through."""

    value: T


class MemoryGuard:
    """Runs the steps of a search's rounds and sees to it that one that does not fit costs nothing but its time.

    ``shrink`` is told how many domains did not fit and makes the next batch smaller; it returns False where it must not
    (the synchronous schedule) or cannot (a single domain). Then ``reason`` says why the search ends, as `unknown`.
    """

    def __init__(self, shrink: Callable[[int], bool]) -> None:
        self._shrink = shrink
        self.reason = ""

    def run(self, parents: B, step: Callable[[B], T], give_back: Callable[[B], None]) -> Done[T] | None:
        """``step(parents)``; None if memory was not enough: the parents are given back then, the next batch is smaller.

        A step that fails must not have added children: it computes first and changes the store last.
        """
        try:
            return Done(step(parents))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            words = words_of(error)
        # here the exception is gone, and with it the frames that held the step's tensors
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        give_back(parents)
        count = len(parents)
        if self._shrink(count):
            _LOG.warning("out of memory with %d domains in a round (%s): going on with fewer", count, words or "host")
        else:
            self.reason = f"out of memory with {count} domains in a round"
            if count > 1:
                self.reason += "; lower solver.batch_size"
        return None
