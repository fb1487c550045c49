"""Ranks of unequal speed come to rounds of equal length; equal ones, and noise, change nothing."""

from __future__ import annotations

import random

import pytest

from complete_verifier.bab.agreement import Agreed, Status
from complete_verifier.bab.domains import REST
from complete_verifier.bab.even_rounds import LEAST_SHARE, EvenRounds

BATCH, ROUNDS = 16384, 60


def _told(batches: list[int], seconds: list[float], apart: bool = True) -> Agreed:
    ranks = tuple(Status(effort=n, seconds=s) for n, s in zip(batches, seconds, strict=True))
    return Agreed(ranks, ranks, apart)


def _after(speeds: list[float], fixed: float, noise: float, apart: bool = True) -> tuple[list[int], list[float]]:
    """Batches and lengths of rounds after some: ``fixed`` seconds and ``speeds`` parents a second."""
    even, drawn, batches = EvenRounds(), random.Random(1), [BATCH] * len(speeds)
    for _ in range(ROUNDS):
        lengths = [(fixed + n / v) * drawn.uniform(1 - noise, 1 + noise) for n, v in zip(batches, speeds, strict=True)]
        even.heard(_told(batches, lengths, apart))
        batches = [even.parents(rank, BATCH) for rank in range(len(speeds))]
    return batches, [fixed + n / v for n, v in zip(batches, speeds, strict=True)]


@pytest.mark.parametrize("fixed", [0.0, 0.02])
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_rounds_become_equally_long(fixed: float, noise: float) -> None:
    """The fastest keeps its batch, the others take as many parents as they have time for, by whole tiles."""
    batches, lengths = _after([170e3, 113e3, 138e3], fixed, noise)
    assert batches[0] == BATCH and batches[1] < batches[2] < batches[0]
    assert all(2 * batch % REST == 0 for batch in batches)
    assert max(lengths) < 1.15 * min(lengths)


@pytest.mark.parametrize("speeds", [[160e3, 160e3], [160e3, 142e3]])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_ranks_that_are_nearly_equal_keep_their_batch(noise: float, speeds: list[float]) -> None:
    """Noise is no reason to take less, nor is a difference that is less than a tile's rows."""
    assert _after(speeds, 0.01, noise)[0] == [BATCH, BATCH]


def test_a_batch_of_one_tile_stays_whole() -> None:
    """However slow the rank: fewer rows of its buffers would save it nothing."""
    even = EvenRounds()
    even.heard(_told([1500, 1500], [0.1, 0.2]))
    assert [even.parents(rank, 1500) for rank in (0, 1)] == [1500, 1500]


def test_a_rank_that_is_much_slower_keeps_a_share() -> None:
    """It may be slow for the moment only."""
    batches, _ = _after([160e3, 20e3], 0.0, 0.0)
    assert batches[0] == BATCH and LEAST_SHARE * BATCH <= batches[1] < LEAST_SHARE * BATCH + REST


def test_ranks_that_do_the_same_work_keep_the_same_batch() -> None:
    """Ranks that share queues, or weights, have to take the same domains: by themselves they decide nothing."""
    assert _after([160e3, 80e3], 0.0, 0.0, apart=False)[0] == [BATCH, BATCH]


def test_idle_rounds_say_nothing() -> None:
    """A rank without domains has no speed."""
    even = EvenRounds()
    even.heard(_told([BATCH, 0], [0.1, 0.0]))
    assert even.share(0) == even.share(1) == 1.0
