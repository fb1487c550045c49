"""A search over activation splits and its checkpoint: what is saved between rounds, and how it is taken up again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from auto_LiRPA.errors import ConfigError
from auto_LiRPA.parallel.context import DistributedContext
from complete_verifier.bab.checkpoint import Checkpoint, CheckpointWriter, Json, Snapshot
from complete_verifier.bab.checkpoint_root import ledger_of, ledger_tensors
from complete_verifier.bab.ledger import Ledger
from complete_verifier.bab.shared_checkpoint import write_together
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

    def restore(self, store: DomainStore[B], like: B, counters: Counters, context: DistributedContext) -> bool:
        """Fill an empty store and the counters; False if there is nothing to go on from. All ranks do so together.

        The sub-problems are shared out over the ranks, however many wrote them.

        Raises:
            ConfigError: what was saved has another form than this search's sub-problems.
        """
        found = self.resumed
        if found is None:
            return False
        fault = ""
        try:
            for piece in found.pieces(context.domains.rank, context.domains.size):
                margin = piece.pop(_MARGIN)
                batch = like.rebuild(tuple(t.to(like.id.device) for t in _fitting(found, piece, like)))
                store.add(batch, margin.to(like.id.device))
        except ConfigError as error:
            fault = str(error)
        faults = [line for line in context.world.objects(fault) if line]
        if faults:
            raise ConfigError(faults[0])
        rows = int(sum(row[0] for row in context.domains.numbers([len(store)])))
        if rows != found.rows:
            raise ConfigError(f"{found.folder}: {rows} sub-problems instead of {found.rows}; begin anew")
        numbers = found.state
        counters.visited, counters.rounds = _whole(numbers, "visited"), _whole(numbers, "rounds")
        counters.next_id = _whole(numbers, "next_id")
        counters.undecided_leaves = _whole(numbers, "undecided_leaves")
        seconds = numbers["seconds"]
        assert isinstance(seconds, int | float)
        counters.started = time.monotonic() - seconds
        if context.domains.rank == 0:  # one rank has the leaves that were closed before
            counters.ledger = ledger_of(found.extra())
        return True

    def save(self, store: DomainStore[B], counters: Counters, next_id: int, context: DistributedContext) -> None:
        """Write a checkpoint now: all ranks together. No sub-problem may be elsewhere than in the stores."""
        if self.writer is None:
            return
        state: dict[str, Json] = {
            "search": KIND,
            "visited": counters.visited,
            "rounds": counters.rounds,
            "next_id": next_id,
            "undecided_leaves": counters.undecided_leaves,
            "seconds": round(time.monotonic() - counters.started, 3),
        }
        leaves = [leaf for part in context.domains.objects(counters.ledger.leaves) for leaf in part]
        extra = ledger_tensors(Ledger(leaves)) if leaves else {}
        writes = context.domains.rank if _writes(context) else None
        write_together(self.writer, Snapshot(state, _named(store), extra), context.world, writes)

    def due(self, size: int, seconds_left: float) -> bool:
        """Whether it is time for the next checkpoint; ``size``: bytes of this rank's open sub-problems."""
        return self.writer is not None and self.writer.due(size, seconds_left)

    def affords_last(self, size: int, seconds_left: float) -> bool:
        """Whether there is time for one more when a limit has ended the search, for a run with another limit."""
        return self.writer is not None and self.writer.cost(size) <= max(_LAST_SAVE_S, seconds_left / 2)


def _writes(context: DistributedContext) -> bool:
    """Whether this rank's sub-problems are to be written: of ranks that have the same ones, one does."""
    return context.world.rank == 0 if context.domains.size == 1 else 0 in context.domains.members


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
