"""A search over activation splits and its checkpoint: what is saved between rounds, and how it is taken up again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from auto_LiRPA.errors import ConfigError
from complete_verifier.bab.checkpoint import Checkpoint, CheckpointWriter, Json, Snapshot
from complete_verifier.bab.checkpoint_root import ledger_of, ledger_tensors
from complete_verifier.bab.ledger import Ledger
from complete_verifier.bab.store import B, DomainStore

KIND = "activation"
# A search that a limit ends is saved once more, if that takes no longer than this or half of the time left.
_LAST_SAVE_S = 0.3
_MARGIN = "margin"


class Counters(Protocol):
    """The numbers of a search that go on from where they were."""

    started: float
    visited: int
    rounds: int
    next_id: int
    undecided_leaves: int
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Keeper:
    """Saves a search by ``writer`` and takes it up from ``resumed``; None: does not."""

    writer: CheckpointWriter | None
    resumed: Checkpoint | None

    def restore(self, store: DomainStore[B], like: B, counters: Counters) -> bool:
        """Fill an empty store and the counters; False if there is nothing to go on from.

        Raises:
            ConfigError: what was saved has another form than this search's sub-problems.
        """
        found = self.resumed
        if found is None:
            return False
        for piece in found.pieces():
            margin = piece.pop(_MARGIN)
            batch = like.rebuild(tuple(t.to(like.id.device) for t in _fitting(found, piece, like)))
            store.add(batch, margin.to(like.id.device))
        if len(store) != found.rows:
            raise ConfigError(f"{found.folder}: {len(store)} sub-problems instead of {found.rows}; begin anew")
        numbers = found.state
        counters.visited, counters.rounds = _whole(numbers, "visited"), _whole(numbers, "rounds")
        counters.next_id = _whole(numbers, "next_id")
        counters.undecided_leaves = _whole(numbers, "undecided_leaves")
        seconds = numbers["seconds"]
        assert isinstance(seconds, int | float)
        counters.started = time.monotonic() - seconds
        counters.ledger = ledger_of(found.extra())
        return True

    def save(self, store: DomainStore[B], counters: Counters) -> None:
        """Write a checkpoint now. No sub-problem may be elsewhere than in the store."""
        if self.writer is None:
            return
        state: dict[str, Json] = {
            "search": KIND,
            "visited": counters.visited,
            "rounds": counters.rounds,
            "next_id": counters.next_id,
            "undecided_leaves": counters.undecided_leaves,
            "seconds": round(time.monotonic() - counters.started, 3),
        }
        extra = ledger_tensors(counters.ledger) if counters.ledger.leaves else {}
        self.writer.write(Snapshot(state, _named(store), extra))

    def save_if_due(self, store: DomainStore[B], counters: Counters, seconds_left: float) -> None:
        """Between two rounds: write a checkpoint if it is time for one."""
        if self.writer is not None and self.writer.due(store.bytes(), seconds_left):
            self.save(store, counters)

    def save_last(self, store: DomainStore[B], counters: Counters, seconds_left: float) -> None:
        """When a limit has ended the search: a run with another limit can go on from here."""
        if self.writer is not None and self.writer.cost(store.bytes()) <= max(_LAST_SAVE_S, seconds_left / 2):
            self.save(store, counters)


def _named(store: DomainStore[B]) -> Iterator[Mapping[str, Tensor]]:
    for batch, margin in store.pieces():
        yield {f"{place:04d}": tensor for place, tensor in enumerate(batch.tensors())} | {_MARGIN: margin}


def _fitting(found: Checkpoint, piece: Mapping[str, Tensor], like: B) -> list[Tensor]:
    """The tensors in order, if they are of the search's kinds."""
    tensors = [piece[name] for name in sorted(piece)]
    mine, theirs = _kinds(like.tensors()), _kinds(tensors)
    if mine != theirs:
        raise ConfigError(
            f"{found.folder}: its sub-problems have another form than this run's: another version of the program wrote"
            " it; resume with that one, or leave out --resume to begin anew"
        )
    return tensors


def _kinds(tensors: list[Tensor] | tuple[Tensor, ...]) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    return [(t.dtype, tuple(t.shape[1:])) for t in tensors]


def _whole(numbers: Mapping[str, Json], name: str) -> int:
    value = numbers[name]
    assert isinstance(value, int)
    return value
