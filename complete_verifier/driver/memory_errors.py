"""Which exceptions say that memory ran out: torch has one for GPUs, its allocator for CPUs has none of its own."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or what it was raised from, says so."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(cause, RuntimeError) and "DefaultCPUAllocator" in str(cause):
            return True
        cause = cause.__cause__
    return False
