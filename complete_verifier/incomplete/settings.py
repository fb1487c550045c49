"""Settings of the incomplete stage, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from auto_LiRPA.errors import ConfigError

Method = Literal["alpha-crown", "crown", "init-crown", "crown-ibp", "ibp", "forward", "forward+crown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IncompleteSettings:
    """How the clauses are bounded before any splitting. Slopes and iterations are part of the problem's bounds."""

    method: Method = "alpha-crown"
    prune_after_crown: bool = True  # leave out of alpha-CROWN what plain CROWN has proved
    max_rows: int = 1_000_000  # rows of the property that are bounded together, at most
    max_seconds: float = float("inf")  # for alpha-CROWN, within the run's own deadline

    def __post_init__(self) -> None:
        """Raises ConfigError (one line) for a method that does not exist here."""
        if self.method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise ConfigError(f"solver.bound_prop_method = {self.method}: not supported here; use one of {known}")
        if self.max_rows < 1:
            raise ConfigError(f"solver.build_batch_size = {self.max_rows}: give a whole number of 1 or more")
