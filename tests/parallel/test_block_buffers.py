"""What the buffers remember of weights that are gone: nothing, but what ranks have to guess alike."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from weakref import ref

import pytest
import torch
from torch import Tensor

from auto_LiRPA.parallel.block_buffers import BlockBuffers, FetchedWeight, Part, _Slot
from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.host_store import HostStore


@dataclass(frozen=True, slots=True)
class FakePart(Part):
    """A block that claims to be needed on a GPU, and holds its numbers."""

    data: Tensor
    shared: bool = False

    @property
    def together(self) -> bool:
        return self.shared

    def fetch(self, buffer: Tensor) -> None:
        raise AssertionError("nothing is fetched here")


def passes(buffers: BlockBuffers, weights: list[list[Part]]) -> list[Part]:
    """Ask for all weights in order, twice, as passes do; the parts that were fetched ahead of the next weight."""
    guessed: list[Part] = []

    def fetch(self: BlockBuffers, slot: _Slot, part: Part, counters: Counters) -> tuple[_Slot, object]:
        guessed.append(part)
        return slot, object()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockBuffers, "_fetch", fetch)
        for _ in range(2):
            for parts in weights:
                buffers._expected(parts[0])
                buffers._look_ahead(parts[-1], Counters())
    return guessed


def part(shared: bool) -> FakePart:
    data = torch.zeros(4)
    return FakePart(0, 1, (4,), data.dtype, torch.device("cuda", 0), 16, data, shared)


@pytest.mark.parametrize("shared", [False, True])
def test_the_next_weight_is_guessed_and_outlives_its_owner_only_where_ranks_guess_together(shared: bool) -> None:
    buffers = BlockBuffers()
    weights: list[list[Part]] = [[part(shared)], [part(shared)], [part(shared)]]
    wanted = [weights[i][0] for i in (1, 2, 0)]
    guessed = passes(buffers, weights)
    assert [id(one) for one in guessed] == [id(one) for one in wanted]
    kept = [ref(one[0].data) for one in weights]  # type: ignore[attr-defined]
    weights.clear(), wanted.clear(), guessed.clear()
    buffers._drop_ahead()
    gc.collect()
    assert [data() is not None for data in kept] == [shared] * 3
    buffers.announce(())
    gc.collect()
    assert not any(data() is not None for data in kept)


def test_a_host_store_that_is_gone_leaves_nothing_in_the_buffers() -> None:
    buffers = BlockBuffers()
    store = HostStore(0.001, buffers, torch.device("cpu"), Counters())
    weights = [store.place(torch.randn(64, 16)) for _ in range(3)]
    for _ in range(2):
        for weight in weights:
            assert isinstance(weight, FetchedWeight) and sum(1 for _ in weight.blocks()) > 1
    kept = [ref(tensor) for tensor in store._kept]
    del store, weights, weight
    gc.collect()
    assert len(kept) >= 6 and not any(tensor() is not None for tensor in kept)
