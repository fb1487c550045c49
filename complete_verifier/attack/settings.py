"""How the attack searches: plain values, checked at the door."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

from auto_LiRPA.errors import ConfigError

Order = Literal["before", "after", "middle", "input_bab", "skip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSettings:
    """Settings of projected gradient descent (section `attack` of the configuration, keys `pgd_*`)."""

    order: Order = "before"  # when the driver attacks; the attack itself does not look at it
    steps: int = 100
    restarts: int = 30  # random starts for each problem, besides the centre of its box
    batch_size: int = 100_000_000  # starts of one problem that are searched together, at most
    early_stop: bool = True  # stop at the first counterexample; else search on for the clearest one
    lr_decay: float = 0.99  # factor on the step size after every step
    alpha: float | Literal["auto"] = "auto"  # step size; auto is a quarter of the box's largest half-width
    alpha_scale: bool = False  # plain sign steps of alpha times each input's own width
    restart_when_stuck: bool = False  # draw anew the points that a step did not move
    mode: str = "PGD"  # `diversed` in it: output-diversified starts; `GAMA` in it: the guiding term as well
    tolerance: float = 0.0  # margin by which every row has to be violated
    gama_lambda: float = 10.0  # first weight of the guiding term
    gama_decay: float = 0.9  # factor on that weight after every step
    scouting: bool = True  # cheap looks before the descents, whose best points half of the starts then come from
    seed: int = 100
    batch_bytes: int = 512 * 2**20  # a batch that would need more memory is cut

    def __post_init__(self) -> None:
        """Raises ConfigError (one line) for a value that makes no sense."""
        for key, least in (("steps", 0), ("restarts", 0), ("batch_size", 1), ("batch_bytes", 1), ("seed", 0)):
            value = getattr(self, key)
            if value < least:
                raise ConfigError(f"attack: {key} = {value}; give {least} or more")
        for key in ("lr_decay", "tolerance", "gama_lambda", "gama_decay"):
            value = getattr(self, key)
            if not (isfinite(value) and value >= 0):
                raise ConfigError(f"attack: {key} = {value}; give a finite number, 0 or more")
        if self.alpha != "auto" and not (isinstance(self.alpha, int | float) and 0 < self.alpha < inf):
            raise ConfigError(f"attack: alpha = {self.alpha!r}; give `auto` or a positive number")

    @property
    def diversified(self) -> bool:
        """Starts are driven apart in the space of outputs first."""
        return "diversed" in self.mode

    @property
    def gama(self) -> bool:
        """The guiding term of GAMA-PGD is added to the objective."""
        return "GAMA" in self.mode
