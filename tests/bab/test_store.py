"""The domain store against a plain list: what comes out and in which order, wherever it lay, and what it costs."""

from __future__ import annotations

import gc
import math
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from auto_LiRPA.errors import ConfigError
from complete_verifier.bab.store import DomainStore, StoreBudget, Traversal
from complete_verifier.bab.tiers.keys import Keys
from complete_verifier.bab.tiers.slabs import Slabs
from tests.bab.toys import Toy, assert_same, toy

TRAVERSALS: tuple[Traversal, ...] = ("worst_first", "depth_first", "breadth_first")
# few values, so that there are ties; -0.0 and 0.0 are one
MARGINS = st.sampled_from([-3.0, -1.0, -1.0, -0.5, -0.0, 0.0, 2.5, math.nan, -math.inf, math.inf])
# a slot begins where its widest number may: at multiples of eight bytes
ROW = -(-sum(t[0].numel() * t.element_size() for t in toy([0]).tensors()) // 8) * 8
UNLIMITED = StoreBudget(2**40, 0)


class Model:
    """What the store has to be: a list that is sorted anew for every pick."""

    def __init__(self, traversal: Traversal) -> None:
        self.traversal = traversal
        self.open: dict[int, float] = {}

    def add(self, ids: list[int], margins: list[float]) -> None:
        self.open.update(zip(ids, margins, strict=True))

    def take(self, count: int) -> list[int]:
        chosen = sorted(self.open, key=self._key)[:count]
        for i in chosen:
            del self.open[i]
        return chosen

    def _key(self, i: int) -> tuple[float, ...]:
        """NaN counts as open as can be, more so than -inf; ties go by id."""
        if self.traversal == "depth_first":
            return (-i,)
        if self.traversal == "breadth_first":
            return (i,)
        margin = self.open[i]
        return (0, 0.0, i) if math.isnan(margin) else (1, margin, i)


def tiers_used(store: DomainStore[Toy]) -> set[str]:
    return {
        name
        for name, level in zip(("device", "host", "disk"), store._levels, strict=True)
        if level.count
    }  # fmt: skip


@pytest.mark.parametrize("traversal", TRAVERSALS)
def test_same_as_a_plain_list(traversal: Traversal, tmp_path: Path) -> None:
    """Random adds and picks under budgets of a few rows: the same domains in the same order, from every tier."""
    seen: set[str] = set()
    moved = [0, 0]

    @given(
        steps=st.lists(st.tuples(st.lists(MARGINS, max_size=9), st.integers(0, 8)), max_size=14),
        rows=st.tuples(st.integers(0, 7), st.integers(0, 7)),
        slab=st.integers(1, 5),
        shuffle=st.integers(0, 2**20),
    )
    def fuzz(
        steps: list[tuple[list[float], int]], rows: tuple[int, int], slab: int, shuffle: int
    ) -> None:
        budget = StoreBudget(rows[0] * ROW, rows[1] * ROW, tmp_path)
        model, next_id = Model(traversal), 0
        with DomainStore(toy([0]), traversal, budget, slab) as store:
            for margins, count in steps:
                # ids are unique; they need not come in order
                ids = list(range(next_id, next_id + len(margins)))
                random.Random(shuffle).shuffle(ids)
                next_id += len(margins)
                store.add(toy(ids), torch.tensor(margins))
                model.add(ids, margins)
                check(store, model, budget)
                wanted = model.take(count)
                assert_same(store.take(count), toy(wanted))
                check(store, model, budget)
                seen.update(tiers_used(store))
            use = store.use()
            moved[0] += use.moved_down
            moved[1] += use.moved_up
            assert_same(store.take(10**6), toy(model.take(10**6)))
            assert len(store) == 0 and store.worst_margin() == math.inf
        assert not any(tmp_path.iterdir()), "files are left behind"

    def check(store: DomainStore[Toy], model: Model, budget: StoreBudget) -> None:
        assert len(store) == len(model.open) == sum(level.count for level in store._levels)
        use = store.use()
        assert use.device_bytes <= budget.device_bytes and use.host_bytes <= budget.host_bytes
        worst, later = store.worst_margin(), store.worst_margin_later()
        assert str(later()) == str(worst)
        if any(math.isnan(m) for m in model.open.values()):
            assert math.isnan(worst)
        else:
            assert worst == min(model.open.values(), default=math.inf)
        pieces = list(store.pieces())
        found = {int(i): float(m) for batch, margin in pieces for i, m in zip(batch.id, margin, strict=True)}
        assert str(found) == str({i: model.open[i] for i in found}) and found.keys() == model.open.keys()
        for batch, _ in pieces:
            assert_same(batch, toy(batch.id.tolist()))

    fuzz()
    assert seen == {"device", "host", "disk"}, "a tier was never used: the test proves nothing about it"
    assert min(moved) > 0


@pytest.mark.parametrize("traversal", TRAVERSALS)
def test_order_does_not_depend_on_the_budget(traversal: Traversal, tmp_path: Path) -> None:
    """Hundreds of domains, coarse margins: the same batches from memory, from host and disk, and from a sort."""
    gen = torch.Generator().manual_seed(3)
    margins = (torch.randn(40, 50, generator=gen) * 4).round() / 4
    budgets = (UNLIMITED, StoreBudget(100 * ROW, 150 * ROW, tmp_path), StoreBudget(0, 40 * ROW, tmp_path))
    stores = [DomainStore(toy([0]), traversal, budget, 16) for budget in budgets]
    model = Model(traversal)
    for step in range(40):
        ids = list(range(50 * step, 50 * step + 50))
        model.add(ids, margins[step].tolist())
        for store in stores:
            store.add(toy(ids), margins[step])
        count = 31 if step < 30 else 200
        wanted = model.take(count)
        for store in stores:
            assert store.take(count).id.tolist() == wanted
    assert stores[1].use().moved_up > 0
    for store in stores:
        store.close()


def test_the_worst_stay_in_the_fast_tier(tmp_path: Path) -> None:
    """What is spilled are the last domains; after a pick the next ones have come up."""
    store = DomainStore(toy([0]), "worst_first", StoreBudget(20 * ROW, 1000 * ROW, tmp_path), 4)
    margins = torch.randperm(100, generator=torch.Generator().manual_seed(0)).float()
    store.add(toy(range(100)), margins)
    fast = store._levels[0]
    assert fast.count == 20
    order = margins.argsort()
    assert set(_ids(store, 0)) == set(order[:20].tolist())
    assert store.take(15).id.tolist() == order[:15].tolist()
    assert set(_ids(store, 0)) == set(order[15:30].tolist()) and fast.count == 15  # 10 of the next 15 have come up
    store.close()


def test_the_best_go_down_first(tmp_path: Path) -> None:
    """Batch after batch, what stays in each tier comes before all that lies further down."""
    store = DomainStore(toy([0]), "worst_first", StoreBudget(40 * ROW, 60 * ROW, tmp_path), 4)
    margins = torch.randperm(200, generator=torch.Generator().manual_seed(1)).float()
    for first in range(0, 200, 20):
        store.add(toy(range(first, first + 20)), margins[first : first + 20])
        tiers = [[float(margins[i]) for i in _ids(store, number)] for number in range(3)]
        for upper, lower in zip(tiers, tiers[1:], strict=False):
            assert not lower or (upper and max(upper) < min(lower))
    assert all(tiers)
    store.close()


def _ids(store: DomainStore[Toy], number: int) -> list[int]:
    level = store._levels[number]
    return [int(i) for slots, _ in level.payload.pieces(level.keys.rank) for i in level.keys.pick(slots).id]


def test_nothing_is_copied_to_grow() -> None:
    """Slabs stay where they are: memory is held once, and hardly more than is used."""
    store = DomainStore(toy([0]), "worst_first", UNLIMITED, slab_slots=64)
    places: set[int] = set()
    for step in range(100):
        store.add(toy(range(32 * step, 32 * step + 32)), torch.zeros(32))
        now = {slab.fields[0].data_ptr() for slab in store._fast._slabs}
        assert places <= now, "a slab has moved"
        places = now
        most = max(256, 32 * (step + 1) * 9 // 8 + 64)
        assert store._fast.capacity <= most
    assert len(places) < 40, "too many slabs: a pick looks at each"
    assert store.use().device_bytes == store._fast.capacity * ROW


def test_slots_are_used_again() -> None:
    store = DomainStore(toy([0]), "worst_first", UNLIMITED, slab_slots=4)
    for step in range(50):
        store.add(toy([3 * step, 3 * step + 1, 3 * step + 2]), torch.zeros(3))
        assert len(store.take(3)) == 3
    assert store._fast.capacity == 4 and len(store) == 0


def test_files_go_with_their_last_domain(tmp_path: Path) -> None:
    store = DomainStore(toy([0]), "breadth_first", StoreBudget(0, 0, tmp_path), 8)
    for step in range(20):
        store.add(toy(range(16 * step, 16 * step + 16)), torch.zeros(16))
        assert store.use().disk_bytes > 0
        store.take(16)
        assert store.use().disk_bytes == 0 and store._disk.capacity <= 16
    store.close()


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), DomainStore(toy([0]), "worst_first", StoreBudget(0, 0, tmp_path)) as store:
        store.add(toy(range(9)), torch.zeros(9))
        assert any(tmp_path.iterdir())
        raise KeyError
    assert not any(tmp_path.iterdir())
    forgotten = DomainStore(toy([0]), "worst_first", StoreBudget(0, 0, tmp_path))
    forgotten.add(toy(range(9)), torch.zeros(9))
    del forgotten
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Python says that it cleans up after us
        gc.collect()
    assert not any(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    store = DomainStore(toy([0]), "worst_first", StoreBudget(0, 0, blocked / "below"))
    with pytest.raises(ConfigError, match="TMPDIR") as caught:
        store.add(toy([1]), torch.zeros(1))
    assert "\n" not in str(caught.value) and str(blocked) in str(caught.value)


def test_payload_is_kept_in_the_store_s_dtype() -> None:
    """A caller that bounds in float32 and stores float16 need not convert."""
    store = DomainStore(toy([0]), "worst_first", UNLIMITED)
    wide = toy([5, 6])
    store.add(Toy(wide.id, wide.sign, wide.value.float(), wide.lower, wide.box, wide.slopes), torch.zeros(2))
    assert_same(store.take(2), wide)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_margins_sort_as_numbers_do(dtype: torch.dtype) -> None:
    gen = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**62), 2**62, (3000,), generator=gen)
    values = torch.cat([bits.view(torch.float64).to(dtype), torch.randn(500, generator=gen).to(dtype)])
    values = values[~values.isnan()]
    rank = Keys.of("worst_first", torch.arange(len(values)), values).rank
    order = rank.argsort(stable=True)
    assert torch.equal(order, (values + 0.0).argsort(stable=True))


def test_the_best_pick_of_many_equals_a_full_sort() -> None:
    """Thousands of ties at the border of the pick."""
    store = DomainStore(toy([0]), "worst_first", UNLIMITED)
    ids = torch.randperm(5000, generator=torch.Generator().manual_seed(2))
    store.add(toy(ids.tolist()), (ids % 3).float())
    wanted = sorted(range(5000), key=lambda i: (i % 3, i))
    assert store.take(1000).id.tolist() == wanted[:1000]
    assert store.take(3000).id.tolist() == wanted[1000:4000]


def test_taking_from_nothing() -> None:
    store = DomainStore(toy([0]), "worst_first")
    assert len(store.take(5)) == 0 and len(store) == 0
    assert store.worst_margin() == math.inf


def test_the_worst_for_later_is_that_of_now() -> None:
    store = DomainStore(toy([0]), "worst_first", UNLIMITED)
    nothing = store.worst_margin_later()
    store.add(toy([1, 2]), torch.tensor([-3.0, -1.0]))
    both = store.worst_margin_later()
    store.take(1)
    assert (nothing(), both(), store.worst_margin()) == (math.inf, -3.0, -1.0)


def test_budgets_come_from_what_is_free() -> None:
    budget = StoreBudget.of(torch.device("cpu"))
    assert 2**20 < budget.device_bytes < 2**50 and budget.host_bytes == 0


def test_a_slab_s_memory_is_what_its_rows_need() -> None:
    slabs = Slabs(toy([0]).tensors(), torch.device("cpu"), False, 10 * ROW, 4)
    assert (slabs.room, slabs.slot_bytes) == (10, ROW)
    slabs.reserve(10)
    assert (slabs.room, slabs.bytes) == (0, 10 * ROW)


@pytest.mark.parametrize("at", [0, 1, 2, 5])
def test_a_budget_that_is_more_than_there_is(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device refuses a slab within the budget: what does not fit goes down, nothing is lost."""
    store = DomainStore(toy([0]), "worst_first", StoreBudget(2**40, 30 * ROW, tmp_path), 8)
    add, grown = Slabs._add, [0]

    def scarce(self: Slabs, slots: int) -> None:
        if self is store._fast:
            grown[0] += 1
            if grown[0] > at:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        add(self, slots)

    monkeypatch.setattr(Slabs, "_add", scarce)
    model = Model("worst_first")
    for step in range(10):
        ids = list(range(20 * step, 20 * step + 20))
        margins = [float(-(i * 7919 % 101)) for i in ids]
        store.add(toy(ids), torch.tensor(margins))
        model.add(ids, margins)
        assert_same(store.take(9), toy(model.take(9)))
    assert tiers_used(store) >= {"host", "disk"}
    assert_same(store.take(200), toy(model.take(200)))
    store.close()


def test_a_pick_over_many_slabs_moves_whole_rows() -> None:
    """Three operations a slab at most, not some for each field of each slab: on a GPU every one costs a launch."""
    slabs = Slabs(toy([0]).tensors(), torch.device("cpu"), False, 2**30, 4)
    rows = toy(range(160))
    place = slabs.reserve(160)
    with Operations() as writing:
        slabs.write(place, rows.tensors())
    order = torch.randperm(160, generator=torch.Generator().manual_seed(1))[:100]
    with Operations() as picking:
        found = slabs.remove(place.slots[order])
    assert_same(Toy(*found), toy(order.tolist()))
    many = len(slabs._slabs)
    assert many > 20
    assert writing.count <= many + 20 and picking.count <= 3 * many + 40, (many, writing.count, picking.count)


class Operations(TorchDispatchMode):
    """Counts operations; to look at the same memory in another way is none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
