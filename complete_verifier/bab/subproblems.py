"""What a search over sub-problems of any kind deals with: batches of them, and what becomes of a round's share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from torch import Tensor

from complete_verifier.bab.ledger import Ledger
from complete_verifier.bab.store import Batch

OnCandidate = Callable[[np.ndarray], bool]  # an input that may violate; True: confirmed, the search can stop


class SubProblems(Batch, Protocol):
    """A `Batch` of which each element belongs to a clause and has a bound: ``clause``, ``lower`` ``[D]``."""

    @property
    def clause(self) -> Tensor: ...

    @property
    def lower(self) -> Tensor: ...

    def pick(self, index: Tensor) -> Self:
        """Some of them, in the given order (repeats allowed)."""


D = TypeVar("D", bound=SubProblems)


@dataclass(frozen=True, slots=True)
class Numbering:
    """Ids of children: those of the b-th block begin at ``first + b * block``, and lie ``step`` apart."""

    first: int
    block: int
    step: int = 1


@dataclass(frozen=True, slots=True)
class Expanded(Generic[D]):
    """Bounded children ``[C]`` of ``parents`` ``[D]``. ``place`` ``[D]``: the parents' places in the round's order.

    ``ready`` ``[D]``: parents with a neuron to split; the others are leaves, and what stands in their children's place
    (not ``real`` ``[C]``) counts for nothing. ``closed`` ``[C]``: proved, or ``empty`` ``[C]``: contradictory splits.
    """

    parents: D
    place: Tensor
    ready: Tensor
    children: D
    real: Tensor
    closed: Tensor
    empty: Tensor


@dataclass(slots=True)
class Share(Generic[D]):
    """What one rank's part of a round comes to: nothing of it counts until all ranks have come through the round."""

    parents: int = 0
    visited: int = 0
    undecided: int = 0
    left: D | None = None  # children still open
    worst: float = float("inf")  # the least bound of these, NaN if there is one
    next_id: int = 0  # above all ids that are taken with it
    effort: int = 0  # parents, as if each had been split once
    ledger: Ledger = field(default_factory=Ledger)
    candidate: np.ndarray | None = None  # a confirmed counterexample, found at the leaf in ``place``
    place: int = 0
