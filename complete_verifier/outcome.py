"""What a run concluded: the four verdicts, how they combine, and the record of one decision."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from auto_LiRPA.errors import ContractError


class Verdict(Enum):
    """The answer to "does the property hold?"; the value is the word the results file wants."""

    HOLDS = "unsat"  # proved: no counterexample exists
    VIOLATED = "sat"  # a counterexample was found and confirmed
    UNKNOWN = "unknown"  # stopped for another reason than time
    TIMEOUT = "timeout"  # stopped by the clock alone

    def __and__(self, other: Verdict) -> Verdict:
        """Verdict of "both parts hold".

        One counterexample settles it; HOLDS needs both. UNKNOWN absorbs TIMEOUT: a timeout says that time was all
        that was missing, and that is false of the whole as soon as one part gave up for another reason.
        Commutative, associative and idempotent; HOLDS is neutral.
        """
        if not isinstance(other, Verdict):
            return NotImplemented
        order = (Verdict.VIOLATED, Verdict.UNKNOWN, Verdict.TIMEOUT, Verdict.HOLDS)
        return min(self, other, key=order.index)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """A verdict, the reason the run ended, and the counterexample that a VIOLATED verdict must carry."""

    verdict: Verdict
    stopped_by: str  # "all domains closed", "time limit 116 s", ...
    counterexample_N: NDArray[np.floating] | None = None  # the network's input, flattened

    def __post_init__(self) -> None:
        if (self.verdict is Verdict.VIOLATED) != (self.counterexample_N is not None):
            raise ContractError(f"{self.verdict.name}: a counterexample comes with VIOLATED and with nothing else")
        point = self.counterexample_N
        if point is not None and (point.ndim != 1 or not np.isfinite(point).all()):
            raise ContractError(f"a counterexample is one flat vector of finite numbers, not of shape {point.shape}")
