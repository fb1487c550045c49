"""The store on a GPU: pinned host memory, copies on a side stream while the main stream is busy, few host syncs."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from complete_verifier.bab.store import DomainStore, StoreBudget
from complete_verifier.bab.tiers.lane import Lane
from complete_verifier.bab.tiers.slabs import Slabs
from tests.bab.test_store import TRAVERSALS, Model
from tests.bab.toys import Toy, assert_same, toy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
WIDTH = 512
LATE_CYCLES = 150_000_000  # about 0.1 s: longer than what the host and the main stream do in between
ROW = sum(t[0].numel() * t.element_size() for t in toy([0], width=WIDTH).tensors())


@pytest.fixture(params=["main", "side"])
def late(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathers of the main stream, or copies of the side stream, start late: who does not wait reads old rows."""
    remove, beside = Slabs.remove, Lane.beside

    def slow_remove(self: Slabs, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if slots.is_cuda:
            torch.cuda._sleep(LATE_CYCLES)
        return remove(self, slots)

    @contextmanager
    def slow_beside(self: Lane) -> Iterator[None]:
        with beside(self):
            torch.cuda._sleep(LATE_CYCLES)
            yield

    if request.param == "main":
        monkeypatch.setattr(Slabs, "remove", slow_remove)
    else:
        monkeypatch.setattr(Lane, "beside", slow_beside)


def busy(matrix: torch.Tensor) -> torch.Tensor:
    """Work on the main stream that takes longer than the store's own calls."""
    for _ in range(20):
        matrix = matrix @ matrix / 2048
    return matrix


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("traversal", TRAVERSALS)
@pytest.mark.parametrize("seed", range(3))
def test_same_as_a_plain_list(traversal: str, seed: int, tmp_path: Path) -> None:
    """Batches larger than the tiers' room, with the GPU busy: no row is read before it has come or after it is gone."""
    gen = random.Random(seed)
    budget = StoreBudget(400 * ROW, 400 * ROW, tmp_path)
    model, next_id = Model(traversal), 0  # type: ignore[arg-type]
    matrix = torch.randn(2048, 2048, device="cuda")
    with DomainStore(toy([0], "cuda", WIDTH), traversal, budget, 64) as store:  # type: ignore[arg-type]
        for _ in range(30):
            ids = list(range(next_id, next_id + gen.randint(0, 300)))
            next_id += len(ids)
            margins = [float(gen.randint(-9, 0)) for _ in ids]
            matrix = busy(matrix)
            store.add(toy(ids, "cuda", WIDTH), torch.tensor(margins, device="cuda"))
            model.add(ids, margins)
            count = gen.randint(0, 200)
            wanted = model.take(count)
            assert_same(store.take(count), toy(wanted, "cuda", WIDTH))
            assert len(store) == len(model.open)
            use = store.use()
            assert use.device_bytes <= budget.device_bytes and use.host_bytes <= budget.host_bytes
        found = sorted(i for batch, _ in store.pieces() for i in batch.id.tolist())
        assert found == sorted(model.open)
        for batch, _ in store.pieces():
            assert_same(batch, toy(batch.id.tolist(), width=WIDTH))
        assert store.use().disk_bytes > 0
        assert store.use().moved_up > 0 or traversal == "depth_first"  # the newest are in the fast tier anyway
        assert_same(store.take(10**6), toy(model.take(10**6), "cuda", WIDTH))


def syncs(action: object) -> list[str]:
    """Where the host waits for the device, by torch's own account."""
    assert callable(action)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{w.filename}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)]


def test_a_round_waits_once_at_most() -> None:
    """While everything fits the device: adding never waits, a pick waits for one small list."""
    store: DomainStore[Toy] = DomainStore(toy([0], "cuda"), "worst_first", StoreBudget(2**32, 0))
    batch = [toy(range(9000 * k, 9000 * k + 9000), "cuda") for k in range(4)]
    margin = torch.randn(9000, device="cuda")
    store.add(batch[0], margin)
    taken = []
    assert syncs(lambda: store.add(batch[1], margin)) == []
    store.add(batch[2], margin)
    assert syncs(lambda: store.add(batch[3], margin)) == []
    assert len(syncs(lambda: taken.append(store.take(4096)))) <= 1
    assert len(taken[0]) == 4096
    later: list[Callable[[], float]] = []
    assert syncs(lambda: later.append(store.worst_margin_later())) == []
    worst = store.worst_margin()
    store.take(4096)
    assert later[0]() == worst < store.worst_margin()


def test_pinned_memory_is_used_to_the_full() -> None:
    """Pinned memory comes in powers of two: slabs of host memory fill theirs."""
    store = DomainStore(toy([0], "cuda", WIDTH), "worst_first", StoreBudget(0, 2**28))
    for k in range(8):
        store.add(toy(range(1000 * k, 1000 * k + 1000), "cuda", WIDTH), torch.zeros(1000, device="cuda"))
    for slab in store._host._slabs:
        assert all(field.is_pinned() for field in slab.fields)
        row = store._host.slot_bytes
        size = slab.slots * row
        assert (1 << (size - 1).bit_length()) - size < row or slab.slots >= store._host.capacity
    assert store.take(8000).id.tolist() == list(range(8000))
