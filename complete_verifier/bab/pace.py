"""How many domains a round takes: what was asked for, what memory and the time left allow.

Ranks that search together are told the same numbers, so that all of them come to the same batch size.
"""

from __future__ import annotations

import torch

from complete_verifier.bab.settings import BabSettings

# Shares of the time left that one round may be planned to take: a long round cannot look at the clock everywhere.
ROUND_SHARE = 0.2
LONGEST_ROUND_S = 10.0
MOST_GROWTH, MOST_SHRINK = 2.0, 0.25


class Pace:
    """The batch size of a search, from round to round."""

    def __init__(self, settings: BabSettings, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self._limit = settings.batch_size
        self._last_batch = 0
        self._last_seconds = 0.0
        self._enlarge = settings.auto_enlarge and not settings.synchronous and device.type == "cuda"

    @property
    def limit(self) -> int:
        """Parents a round may take at most."""
        return self._limit

    def batch(self, open_domains: int, seconds_left: float) -> int:
        """Parents of the next round: cut down so that it fits the time left.

        It grows from what the last round showed, to double at most: with few domains a round is all overhead, so
        seconds per domain would say far too little.
        """
        batch = self._limit
        if self._last_seconds > 0 and not self._settings.synchronous:
            planned = min(ROUND_SHARE * max(seconds_left, 0.1), LONGEST_ROUND_S)
            growth = min(max(planned / self._last_seconds, MOST_SHRINK), MOST_GROWTH)
            batch = min(batch, max(1, int(self._last_batch * growth)))
        return min(batch, open_domains)

    def ended(self, parents: int, seconds: float, room: bool = True) -> None:
        """Take note of a round; a full one on a GPU with memory to spare (``room``) doubles the limit."""
        self._last_batch = max(self._last_batch // 2, parents)
        self._last_seconds = seconds
        if self._enlarge and parents >= self._limit and room:
            self._limit *= 2

    def can_shrink(self, parents: int) -> bool:
        """Whether a round may take fewer than so many parents."""
        return parents > 1 and not self._settings.synchronous

    def ran_out_of_memory(self, parents: int) -> bool:
        """A round of so many parents did not fit: halve the batch; False if it cannot be smaller."""
        if not self.can_shrink(parents):
            return False
        self._limit = self._last_batch = parents // 2
        self._enlarge = False
        return True

    def has_room(self) -> bool:
        """Whether this rank's device has memory for larger rounds, if they are wanted."""
        if not self._enlarge:
            return False
        total = torch.cuda.get_device_properties(self._device).total_memory
        return 2 * torch.cuda.memory_reserved(self._device) < self._settings.enlarge_vram_ratio * total
