"""Out of memory in a round: nothing is lost, the batch shrinks until it fits, other errors are not hidden."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable

import pytest
import torch

from complete_verifier.bab.oom import Done, MemoryGuard, is_out_of_memory
from complete_verifier.bab.store import DomainStore, StoreBudget
from tests.bab.toys import Toy, toy

SHORTAGES: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
    "host": MemoryError,
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}


class Batch:
    """The batch size of a search that may shrink it, or may not."""

    def __init__(self, fixed: bool = False) -> None:
        self.most, self.fixed = 64, fixed

    def shrink(self, count: int) -> bool:
        if self.fixed or count == 1:
            return False
        self.most = count // 2
        return True


@pytest.mark.parametrize("kind", SHORTAGES)
def test_the_batch_is_halved_until_it_fits_and_nothing_is_lost(kind: str) -> None:
    """A machine that holds 5 domains: a search that asks for 64 visits each domain exactly once."""
    store = DomainStore(toy([0]), "worst_first", StoreBudget(2**30, 0))
    store.add(toy(range(100)), -torch.arange(100).float())
    batch, visited, batches = Batch(), [], []
    guard = MemoryGuard(batch.shrink)

    def step(parents: Toy) -> int:
        batches.append(len(parents))
        if len(parents) > 5:
            raise SHORTAGES[kind]()
        visited.extend(parents.id.tolist())
        return len(parents)

    while len(store):
        parents = store.take(batch.most)
        before = len(store)
        done = guard.run(parents, step, lambda back: store.add(back, -back.id.float()))
        assert (done is None) == (len(store) == before + len(parents))
        if done is not None:
            assert done == Done(len(parents))
    assert batches[:5] == [64, 32, 16, 8, 4] and set(batches[5:]) == {4}
    assert visited == list(range(99, -1, -1))
    assert guard.reason == ""


def test_a_real_shortage_is_one(caplog: pytest.LogCaptureFixture) -> None:
    """The allocator's own words, as torch says them here."""
    batch = Batch()
    guard = MemoryGuard(batch.shrink)
    with caplog.at_level(logging.WARNING):
        assert guard.run(toy(range(8)), lambda _: torch.empty(2**60, dtype=torch.uint8), lambda _: None) is None
    assert batch.most == 4
    assert "8 domains" in caplog.text and "\n" not in caplog.records[0].getMessage()


def test_the_synchronous_schedule_ends_instead() -> None:
    """The batch is part of what makes the tree the same everywhere."""
    given_back: list[Toy] = []
    batch = Batch(fixed=True)
    guard = MemoryGuard(batch.shrink)

    def step(_: Toy) -> None:
        raise MemoryError

    assert guard.run(toy(range(8)), step, given_back.append) is None
    assert guard.reason == "out of memory with 8 domains in a round; lower solver.batch_size"
    assert batch.most == 64 and len(given_back[0]) == 8


def test_a_single_domain_that_does_not_fit_ends_the_search() -> None:
    guard = MemoryGuard(Batch().shrink)

    def step(_: Toy) -> None:
        raise MemoryError

    assert guard.run(toy([3]), step, lambda _: None) is None
    assert guard.reason == "out of memory with 1 domains in a round"


def test_tensors_of_the_failed_step_are_gone_before_the_next_one() -> None:
    """The exception's frames hold them; a retry with half the batch would find the memory still taken."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def step(_: Toy) -> None:
        large = torch.zeros(10)
        held.append(weakref.ref(large))
        raise MemoryError

    MemoryGuard(Batch().shrink).run(toy([1, 2]), step, lambda _: alive.append(held[0]() is not None))
    assert alive == [False]


def test_other_errors_pass() -> None:
    batch = Batch()
    guard = MemoryGuard(batch.shrink)

    def step(_: Toy) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        guard.run(toy([1, 2]), step, lambda _: pytest.fail("given back"))
    assert batch.most == 64
    assert not is_out_of_memory(ValueError("out of memory"))
