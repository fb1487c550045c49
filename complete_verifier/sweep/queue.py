"""Who runs which instance next. The seam for several ranks: a queue that they share hands out the same indices."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol


class WorkQueue(Protocol):
    """Hands out indices of instances, each to one taker."""

    def take(self) -> int | None:
        """The next index; None if there is none left."""

    def put_back(self, index: int) -> None:
        """An index whose run was lost without a fault of its own: the next to be taken."""


class LocalQueue:
    """The indices of one process, in the order given."""

    def __init__(self, indices: Iterable[int]) -> None:
        self._waiting = deque(indices)

    def take(self) -> int | None:
        return self._waiting.popleft() if self._waiting else None

    def put_back(self, index: int) -> None:
        self._waiting.appendleft(index)
