"""Tiles dealt out to ranks: every position once, what is left over in turn, results back in tile order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.groups import Group
from auto_LiRPA.parallel.sharing import TURNS_CPU, CommonClock, Dealing, each_tile, in_order, own, owner, slots
from auto_LiRPA.parallel.tiles import MIN_TILES, PIECE_MIB, pieces
from tests.parallel.launching import Launch, launch, once
from tests.parallel.sharing_workers import Stored

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


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_who_has_least_gets_what_is_left_over(ranks: int) -> None:
    """Lists whose tiles cost more and more, as deeper layers' do: turn by turn, the last rank would have most."""
    dealing, held = Dealing(ranks), [0.0] * ranks
    costs = [1.0 + depth for depth in range(18)]
    for depth, cost in enumerate(costs):
        count = 1 + depth % 3
        first = dealing.first(count, cost)
        for rank in range(ranks):
            held[rank] += cost * len(own(_group(rank, ranks), count, first))
    assert dealing.held == pytest.approx(held)
    assert max(held) - min(held) <= costs[-1]


@dataclass(frozen=True, slots=True)
class _Late(Group):
    """Two ranks: what the other one says to each question."""

    other: tuple[float, ...] = ()
    asked: list[float] = field(default_factory=list)

    def numbers(self, values: Sequence[float]) -> list[list[float]]:
        mine = values[0]
        self.asked.append(mine)
        return [[mine], [self.other[len(self.asked) - 1]]]

    def gather(self, part: Tensor) -> Tensor:
        return torch.stack([part, part])


def _late(*other: float) -> tuple[DistributedContext, _Late]:
    group = _Late(0, 2, Counters(), (0, 1), other=other)
    return replace(DistributedContext.single(), world=group, rows=group, seconds_left=lambda: 1.0), group


def test_ranks_agree_on_the_deadline_once_in_some_turns() -> None:
    """Counted on from list to list: short lists, one tile each, cost no agreement each."""
    context, group = _late(*[0.0] * 9)
    clock = CommonClock(context)
    for _ in range(4 * TURNS_CPU):
        each_tile(context, 1, lambda position: torch.zeros(2), torch.zeros(2), clock=clock)
    assert len(group.asked) == 4
    each_tile(context, 1, lambda position: torch.zeros(2), torch.zeros(2))
    assert len(group.asked) == 5, "without a clock ranks agree in every list"


def test_a_rank_without_time_ends_it_for_all_and_for_good() -> None:
    context, group = _late(0.0, 1.0, 1.0)
    clock, turns = CommonClock(context), 0
    with pytest.raises(OutOfTime):
        for _ in range(3 * TURNS_CPU):
            clock.turn()
            turns += 1
    assert turns == TURNS_CPU
    with pytest.raises(OutOfTime):
        clock.turn()  # what begins next ends at once, too


@pytest.mark.parametrize("size", [0, PIECE_MIB - 1, PIECE_MIB, 2 * PIECE_MIB, 5 * PIECE_MIB, 8 * PIECE_MIB, 10**5])
def test_pieces_are_powers_of_two_and_large(size: int) -> None:
    found = pieces(size * MIB // 8, 1, 4, 1)
    assert found in (1, 2, 4, MIN_TILES)
    assert found == 1 or size / found >= PIECE_MIB
    assert found == MIN_TILES or size < 2 * found * PIECE_MIB or size < PIECE_MIB


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    """Of two ranks that share a joint optimisation."""
    one = [Launch(2, "tests.parallel.sharing_workers:stored", "cnn", timeout_s=60)]
    return once(tmp_path_factory, "sharing", lambda: launch(one))[0].checked()


def test_ranks_store_equal_shares(stored: list[Stored]) -> None:
    """Slopes of a joint optimisation: no rank stores more than its share and one tile of each kind."""
    each = [one.slopes for one in stored]
    assert max(each) <= 0.56 * sum(each), each


def test_what_is_said_in_an_iteration(stored: list[Stored]) -> None:
    """One gather for the bounds of a start node and one for its adjoints, which are those of undecided neurons."""
    for one in stored:
        phases = one.iterations + (one.iterations - 1)  # bounds, and gradients but for the last iteration
        assert one.gathers <= phases * (one.starts + 1) + 2, one  # beside CROWN's own bounds, at first and at last
        assert one.objects == 0, one
        assert one.adjoint_numbers <= 2 * one.undecided * one.tiles * (one.iterations - 1), one
