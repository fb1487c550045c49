"""Tiles dealt out to ranks: every position once, what is left over in turn, results back in tile order."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.groups import Group
from auto_LiRPA.parallel.sharing import in_order, own, owner, slots
from auto_LiRPA.parallel.tiles import MIN_TILES, PIECE_MIB, pieces
from tests.parallel.launching import Launch, launch

MIB = 2**20


def _group(rank: int, size: int) -> Group:
    return Group(rank, size, Counters(), tuple(range(size)))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 5, 9])
@pytest.mark.parametrize("first", [0, 1, 4, 7])
def test_every_position_has_one_owner(size: int, count: int, first: int) -> None:
    found = []
    for rank in range(size):
        group = _group(rank, size)
        turns = list(slots(group, count, first))
        assert [position for position, mine in turns if mine] == list(own(group, count, first))
        assert len(turns) == -(-count // size)  # all ranks have equally many turns: lockstep
        found += [(position, rank) for position in own(group, count, first)]
    assert sorted(found) == [(position, owner(_group(0, size), position, first)) for position in range(count)]
    assert found.count((0, first % size)) == 1


@dataclass(frozen=True, slots=True)
class _Told(Group):
    """A group whose other ranks are here: what each would say."""

    parts: tuple[Tensor, ...] = ()

    def gather(self, part: Tensor) -> Tensor:
        assert torch.equal(part, self.parts[self.rank])
        return torch.stack(self.parts)


@pytest.mark.parametrize("first", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_results_come_back_in_tile_order(first: int, count: int) -> None:
    size, like = 3, torch.zeros(2)
    mine = [[torch.full((2,), 1.0 + p) for p in own(_group(rank, size), count, first)] for rank in range(size)]
    rounds = -(-count // size)
    padded = tuple(torch.stack([*part, *[torch.zeros(2)] * (rounds - len(part))]) for part in mine)
    for rank in range(size):
        group = _Told(rank, size, Counters(), (0, 1, 2), parts=padded)
        found = in_order(group, mine[rank], count, like, first)
        assert [float(part[0]) for part in found] == [1.0 + p for p in range(count)]


def test_what_is_left_over_goes_round() -> None:
    """Lists of one tile each: without it rank 0 would have them all."""
    dealt, held = 0, [0, 0, 0]
    for count in (1, 1, 1, 3, 1, 4, 2, 5):
        for rank in range(3):
            held[rank] += len(own(_group(rank, 3), count, dealt))
        dealt += count
    assert max(held) - min(held) <= 1 and sum(held) == dealt


@pytest.mark.parametrize("size", [0, PIECE_MIB - 1, PIECE_MIB, 2 * PIECE_MIB, 5 * PIECE_MIB, 8 * PIECE_MIB, 10**5])
def test_pieces_are_powers_of_two_and_large(size: int) -> None:
    found = pieces(size * MIB // 8, 1, 4, 1)
    assert found in (1, 2, 4, MIN_TILES)
    assert found == 1 or size / found >= PIECE_MIB
    assert found == MIN_TILES or size < 2 * found * PIECE_MIB or size < PIECE_MIB


def test_ranks_store_equal_shares() -> None:
    """Slopes of a joint optimisation: no rank stores more than its share and one tile of each kind."""
    outcomes = launch([Launch(2, "tests.parallel.sharing_workers:stored", "cnn", timeout_s=60)])
    each = outcomes[0].checked()
    assert max(each) <= 0.56 * sum(each), each
