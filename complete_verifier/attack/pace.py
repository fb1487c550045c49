"""How long a step takes, whether there is time for one, and how many points it may work on."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Deadline = Callable[[], float]

# Host synchronisations stall a GPU's queue: there the clock and the candidates are looked at every so many steps ...
_STEPS_BETWEEN_CHECKS = 8
# ... or so many seconds, if steps are slow.
_SECONDS_BETWEEN_CHECKS = 0.2
# One gradient step costs about as much as three evaluations.
_EVALUATIONS_PER_STEP = 3
# A batch is cut so that one step takes no more than this share of the time left.
_STEP_SHARE_OF_TIME = 0.05


class Pace:
    """Measured speed of the network against the seconds left."""

    def __init__(self, deadline: Deadline, device: torch.device) -> None:
        self._deadline = deadline
        self._device = device
        self._seconds_per_point = 0.0

    @property
    def unknown(self) -> bool:
        """Whether nothing has been measured yet."""
        return self._seconds_per_point == 0.0

    def clock(self) -> float:
        """Seconds of a clock that waits for the GPU's work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def note_evaluation(self, points: int, seconds: float) -> None:
        """An evaluation of so many points took so long. The shortest counts: hiccups of the machine only lengthen."""
        measured = seconds / points
        self._seconds_per_point = measured if self.unknown else min(measured, self._seconds_per_point)

    def note_step(self, points: int, began: float) -> None:
        """A step that began then is over. On a GPU the clock shows launches only: the evaluations' figure stays."""
        if self._device.type == "cpu":
            self._seconds_per_point = (time.perf_counter() - began) / (_EVALUATIONS_PER_STEP * points)

    def left(self) -> float:
        """Seconds left."""
        return self._deadline()

    def evaluations_in(self, share: float) -> int:
        """How many points can be evaluated in this share of the time left."""
        seconds = max(0.0, self._deadline()) * share
        return int(min(seconds / max(self._seconds_per_point, 1e-9), 1e12))

    def step_seconds(self, points: int) -> float:
        """How long a step on so many points takes, by what was measured last."""
        return _EVALUATIONS_PER_STEP * self._seconds_per_point * points

    def no_time_for(self, points: int) -> bool:
        """Whether a step on so many points would end too late."""
        return self._deadline() <= self.step_seconds(points)

    def check_due(self, step: int, points: int) -> bool:
        """Whether the candidates should be looked at in this step."""
        if self._device.type == "cpu":
            return True
        seconds = max(self.step_seconds(points), 1e-6)
        return step % max(1, min(_STEPS_BETWEEN_CHECKS, int(_SECONDS_BETWEEN_CHECKS / seconds))) == 0

    def points_at_once(self, most: int) -> int:
        """How many points one step may work on, ``most`` at most."""
        seconds = self.step_seconds(1)
        share = max(0.0, self._deadline()) * _STEP_SHARE_OF_TIME
        if seconds == 0 or share >= most * seconds:
            return most
        return max(1, int(share / seconds))
