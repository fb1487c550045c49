"""How long a step takes, whether there is time for one, and how many points it may work on.

Ranks that attack together decide alike: by the least time left and the slowest step of all, as of their last look at
the clock (`Pace.look`), which all of them take at the same steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from complete_verifier.attack.team import Team

Deadline = Callable[[], float]

# Host synchronisations stall a GPU's queue: there the clock and the candidates are looked at every so many steps ...
_STEPS_BETWEEN_CHECKS = 8
# ... or so many seconds, if steps are slow.
_SECONDS_BETWEEN_CHECKS = 0.2
# Several ranks wait for the slowest one whenever they look: less often where steps are short.
_STEPS_BETWEEN_LOOKS = 64
_SECONDS_BETWEEN_LOOKS = 0.05
# One gradient step costs about as much as three evaluations.
_EVALUATIONS_PER_STEP = 3
# A batch is cut so that one step takes no more than this share of the time left.
_STEP_SHARE_OF_TIME = 0.05


class Pace:
    """Measured speed of the network against the seconds left."""

    def __init__(self, deadline: Deadline, device: torch.device, team: Team) -> None:
        self._deadline = deadline
        self._device = device
        self._group = team.group
        self._seconds_per_point = 0.0  # what decisions are made by
        self._measured = 0.0  # by this rank
        self._left = 0.0
        self.look()

    @property
    def unknown(self) -> bool:
        """Whether nothing has been measured yet."""
        return self._seconds_per_point == 0.0

    def look(self) -> None:
        """Look at the clock together with the other ranks, and exchange what was measured."""
        if self._group.size == 1:
            self._seconds_per_point = self._measured
            return
        rows = self._group.numbers([self._deadline(), self._measured])
        self._left = min(row[0] for row in rows)
        self._seconds_per_point = max(row[1] for row in rows)

    def clock(self) -> float:
        """Seconds of a clock that waits for the GPU's work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def slowest(self, seconds: float) -> float:
        """The longest that any rank took."""
        return self._group.largest(seconds)

    def note_evaluation(self, points: int, seconds: float) -> None:
        """An evaluation of so many points took so long. The shortest counts: hiccups of the machine only lengthen."""
        measured = seconds / points
        self._measured = measured if self._measured == 0.0 else min(measured, self._measured)
        self.look()

    def note_step(self, points: int, began: float) -> None:
        """A step that began then is over. On a GPU the clock shows launches only: the evaluations' figure stays."""
        if self._device.type == "cpu":
            self._measured = (time.perf_counter() - began) / (_EVALUATIONS_PER_STEP * points)
            if self._group.size == 1:
                self._seconds_per_point = self._measured

    def left(self) -> float:
        """Seconds left."""
        return self._deadline() if self._group.size == 1 else self._left

    def evaluations_in(self, share: float) -> int:
        """How many points can be evaluated in this share of the time left."""
        seconds = max(0.0, self.left()) * share
        return int(min(seconds / max(self._seconds_per_point, 1e-9), 1e12))

    def step_seconds(self, points: int) -> float:
        """How long a step on so many points takes, by what was measured last."""
        return _EVALUATIONS_PER_STEP * self._seconds_per_point * points

    def no_time_for(self, points: int) -> bool:
        """Whether a step on so many points would end too late."""
        return self.left() <= self.step_seconds(points)

    def check_due(self, step: int, points: int) -> bool:
        """Whether the candidates should be looked at in this step."""
        several = self._group.size > 1
        if self._device.type == "cpu" and not several:
            return True
        seconds = max(self.step_seconds(points), 1e-6)
        steps, span = (
            (_STEPS_BETWEEN_LOOKS, _SECONDS_BETWEEN_LOOKS)
            if several
            else (_STEPS_BETWEEN_CHECKS, _SECONDS_BETWEEN_CHECKS)
        )
        return step % max(1, min(steps, int(span / seconds))) == 0

    def points_at_once(self, most: int) -> int:
        """How many points one step may work on, ``most`` at most."""
        seconds = self.step_seconds(1)
        share = max(0.0, self.left()) * _STEP_SHARE_OF_TIME
        if seconds == 0 or share >= most * seconds:
            return most
        return max(1, int(share / seconds))
