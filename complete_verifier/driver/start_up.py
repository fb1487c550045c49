"""What keeps the start and the end of a process short."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collection() -> Iterator[None]:
    """Pauses the cycle collector around imports, and leaves what they made out of later collections.

    The tensor library makes a million objects that stay. Measured: 7 % of the start, and two thirds of the end.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
