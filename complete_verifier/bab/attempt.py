"""A step that may run out of time or memory: what became of it, for ranks that have to decide together."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.parallel.shortage import is_out_of_memory, words_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Attempt(Generic[T]):
    """``value``: None where the step did not go through, because time ended (``late``) or memory was not enough.

    ``shortage``: the allocator's words for the latter.
    """

    value: T | None
    late: bool = False
    shortage: str = ""


def attempt(step: Callable[[], T], outlives_shortage: bool = True) -> Attempt[T]:
    """Run a step that changes nothing but what it returns.

    ``outlives_shortage``: False where other ranks wait within the step, so that nothing can be saved: the error passes.
    """
    try:
        return Attempt(step())
    except OutOfTime:
        return Attempt(None, late=True)
    except (RuntimeError, MemoryError) as error:
        if not (outlives_shortage and is_out_of_memory(error)):
            raise
        words = words_of(error)
    # here the exception is gone, and with it the frames that held the step's tensors
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Attempt(None, shortage=words or "host")
