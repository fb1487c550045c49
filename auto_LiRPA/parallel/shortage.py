"""Which exceptions say that memory ran out, of the device or of the host.

torch has an exception for what its CUDA allocator refuses; all others say it in words.
"""

from __future__ import annotations

import torch

_WORDS = (
    "out of memory",
    "DefaultCPUAllocator",
    "not enough memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the exception itself says so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def comes_from_shortage(error: BaseException) -> bool:
    """Whether the exception, or what it was raised from, says so."""
    cause: BaseException | None = error
    while cause is not None:
        if is_out_of_memory(cause):
            return True
        cause = cause.__cause__
    return False


def words_of(error: BaseException) -> str:
    """The allocator's own words: the first sentence."""
    return " ".join(str(error).split("\n")[0].split(". ")[0].split())
