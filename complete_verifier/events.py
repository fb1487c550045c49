"""What a run tells while it works: small frozen records that a display or a log turns into lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["load", "attack", "incomplete", "mip", "bab"]


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins; ``seconds_left`` until the deadline of the instance."""

    stage: Stage
    seconds_left: float


@dataclass(frozen=True, slots=True)
class ProblemLoaded:
    """Network and property are read and fit each other."""

    network: str
    nodes: int
    inputs: int
    outputs: int
    regions: int
    clauses: int


@dataclass(frozen=True, slots=True)
class AttackEnded:
    """One attack is over. ``confirmed``: it found a counterexample that onnxruntime agrees with."""

    confirmed: bool
    restarts: int
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BoundsFound:
    """A bounding method has bounded every clause that was open. ``margins``: the first ten, in order of clauses."""

    method: str
    margins: tuple[float, ...]
    worst: float
    proven: int
    clauses: int
    unstable: int
    iterations: int = 0


@dataclass(frozen=True, slots=True)
class SearchProgressed:
    """Branch and bound finished a round."""

    round: int
    domains_open: int
    domains_visited: int
    worst: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the user that fits nowhere else: what was chosen and why."""

    text: str


Event = StageStarted | ProblemLoaded | AttackEnded | BoundsFound | SearchProgressed | Note
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener that nobody needs to pass by hand."""
