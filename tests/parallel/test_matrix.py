"""One answer: bounds, verdicts and counts are bit for bit those of one process, however ranks share the work.

The reference is one process that was started without a thread count; ranks come from one launch per number of ranks,
and once from plain torchrun. `tests.parallel.matrix` has the layouts' meaning, `tests.parallel.networks` the networks.

On GPUs, even if all ranks share one: MATRIX_DEVICE=cuda python -m pytest tests/parallel/test_matrix.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch

from tests.parallel.launching import Launch, Outcome, launch, once, torchrun
from tests.parallel.matrix import BOUND_KINDS, Facts, Found, Kind, Layout, Task
from tests.parallel.networks import NETS
from tests.parallel.torchrun_matrix import TASKS

RANKS = (1, 2, 3, 4)
MORE = (2, 3, 4)
SINGLE = Layout("single", "single", (1,))
# Bit for bit as one process. What is sharded says which tasks a line is for.
EQUAL = (
    Layout("offload", "offload", (1,)),
    Layout("fsdp", "fsdp", RANKS),
    Layout("rows", "single", RANKS, rows="shard"),
    Layout("domains", "single", RANKS, domains="shard"),
    Layout("fsdp+rows", "fsdp", MORE, rows="shard"),
    Layout("fsdp+domains", "fsdp", MORE, domains="shard"),
    Layout("fsdp+rows+domains", "fsdp", MORE, rows="shard", domains="shard"),
    Layout("offload+rows", "offload", MORE, rows="shard"),
    Layout("offload+domains", "offload", (2,), domains="shard"),
    Layout("mesh weights+rows", "fsdp", (4,), rows="shard", mesh={"weights": 2, "rows": 2}),
    Layout("mesh weights+domains", "fsdp", (4,), domains="shard", mesh={"weights": 2, "domains": 2}),
    Layout("mesh rows+domains", "single", (4,), rows="shard", domains="shard", mesh={"rows": 2, "domains": 2}),
)
# Sums are added in another order: within a tolerance.
CLOSE = (
    Layout("tp", "tp", MORE),
    Layout("mesh tp+rows", "tp", (4,), rows="shard", mesh={"weights": 2, "rows": 2}),
    Layout("mesh tp+domains", "tp", (4,), domains="shard", mesh={"weights": 2, "domains": 2}),
)
# The short form's tasks on the network with attention, at two ranks and at three.
ATTENTION: dict[str, tuple[tuple[Kind, ...], tuple[Kind, ...]]] = {
    "fsdp": (("ibp", "crown", "fixed"), ()),
    "rows": (("crown",), ("fixed", "keep")),
    "fsdp+rows": (("keep",), ("crown",)),
    "domains": ((), ("bab",)),
    "fsdp+domains": (("bab",), ("bab",)),
    "tp": (("crown",), ()),
}
# What is not there yet, by name of the line: its reason.
DOUBLE_KINDS: tuple[Kind, ...] = ("crown", "keep")  # of tensor parallelism, in float64
MISSING: dict[str, str] = {}


def tasks_of(layout: Layout, ranks: int, full: bool) -> list[Task]:
    """The tasks of a line at a number of ranks. Each gather of a block takes milliseconds where cores are shared: the
    short form has all kinds of bounds at two ranks, and of the rest what differs from line to line.
    """
    bounds, searches = [Task(net, kind) for net in NETS for kind in BOUND_KINDS], [Task(net, "bab") for net in NETS]
    if layout.domains == "shard" and layout.rows == "replicate":
        bounds = []  # no bound outside the search depends on domains
    if layout.mode == "single" and layout.domains == "replicate":
        searches = searches[:1]  # rows matter before the search only
    if layout.mode == "tp":
        searches = searches[:1]
        bounds += [Task(net, kind, torch.float64) for net in NETS for kind in DOUBLE_KINDS]
    if full:
        return bounds + searches
    short = [task for task in bounds if _in_short_form(layout, ranks, task)] + searches[: _searches(layout, ranks)]
    return short + _attention(layout, ranks)


def _attention(layout: Layout, ranks: int) -> list[Task]:
    two, three = ATTENTION.get(layout.name, ((), ()))
    return [Task("attention", kind) for kind in {2: two, 3: three}.get(ranks, ())]


def _in_short_form(layout: Layout, ranks: int, task: Task) -> bool:
    if task.net == "attention":
        return False
    if task.dtype == torch.float64:
        return ranks == 2 or task.net == "mlp"
    if layout.rows == "replicate" and layout.mode == "fsdp":  # every rank makes every pass, and every gather
        return task.kind in ("ibp", "crown") if ranks == 2 else task.kind == "crown" and task.net != "cnn"
    if layout.domains == "shard" or layout.mesh is not None:  # rows as without domains, or in a smaller group
        return task.net == "mlp" and task.kind in ("crown", "keep")
    if ranks == 2 or layout.mode == "single":
        return task.net == "mlp" or task.kind in ("crown", "keep", "stream")
    return task.kind in ("crown", "keep") and task.net == ("mlp", "cnn", "residual")[ranks % 3]


def _searches(layout: Layout, ranks: int) -> int:
    """Of how many networks."""
    if layout.domains == "shard" and layout.mode == "single" and layout.mesh is None:
        return 3
    if layout.domains == "replicate" and ranks != 2:
        return 0
    return 2 if ranks == 2 and layout.name == "fsdp+domains" else 1


def reference_tasks(full: bool) -> list[Task]:
    """Once what any line is compared with."""
    tasks = [task for ranks in RANKS for _, tasks in lines(ranks, full) for task in tasks]
    return list(dict.fromkeys((*tasks, *TASKS)))


def lines(ranks: int, full: bool) -> list[tuple[Layout, list[Task]]]:
    """What the launch of so many ranks has to do."""
    return [
        (layout, tasks_of(layout, ranks, full))
        for layout in (*EQUAL, *CLOSE)
        if ranks in layout.ranks and layout.name not in MISSING
    ]


RUN = "tests.parallel.matrix:run"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, count: Callable[[int, int], int]) -> dict[int, Outcome]:
    """One launch per number of ranks; 0: the reference, from a process that saw no thread count."""

    full = count(0, 1) == 1
    limit = 1200.0 if full else 400.0

    def make() -> dict[int, Outcome]:
        alone = Launch(1, RUN, (limit, [(SINGLE, reference_tasks(full))]), timeout_s=limit + 30)
        reference = launch([alone], {"OMP_NUM_THREADS": None})
        several = [Launch(p, RUN, (limit, lines(p, full)), timeout_s=limit + 30) for p in RANKS]
        ranks = launch(several, {"OMP_NUM_THREADS": "1"})
        return dict(zip((0, *RANKS), (*reference, *ranks), strict=True))

    return once(tmp_path_factory, "matrix", make)


@pytest.fixture(scope="module")
def reference(outcomes: dict[int, Outcome]) -> dict[Task, Found]:
    found: dict[tuple[str, Task], Found] = outcomes[0].checked()[0]
    assert not [one.error for one in found.values() if one.error]
    return {task: one for (_, task), one in found.items()}


def entries(layouts: Iterable[Layout]) -> list[object]:
    """Lines by numbers of ranks; what is missing is expected to fail."""
    found: list[object] = []
    for layout in layouts:
        for ranks in layout.ranks:
            mark = [pytest.mark.xfail(reason=MISSING[layout.name])] if layout.name in MISSING else []
            found.append(pytest.param(layout, ranks, id=f"{layout.name}-{ranks}", marks=mark))
    return found


def each_rank(outcomes: dict[int, Outcome], layout: Layout, ranks: int) -> Iterator[tuple[int, Task, Found]]:
    """Results of every rank and task; fails where a rank could not compute one."""
    outcome = outcomes[ranks]
    assert outcome.ok, outcome.told()
    seen = 0
    for rank, found in enumerate(outcome.results):
        for (name, task), one in found.items():
            if name == layout.name:
                seen += 1
                assert not one.error, f"{task.name} on rank {rank}:\n{one.error}"
                yield rank, task, one
    assert seen, "no task of this line was begun in time"


@pytest.mark.parametrize(("layout", "ranks"), entries(EQUAL))
def test_same_bits(outcomes: dict[int, Outcome], reference: dict[Task, Found], layout: Layout, ranks: int) -> None:
    different = []
    for rank, task, found in each_rank(outcomes, layout, ranks):
        single = reference[task]
        assert found.tensors.keys() == single.tensors.keys()
        for name, tensor in found.tensors.items():
            if not torch.equal(tensor, single.tensors[name]):
                error = (tensor - single.tensors[name]).abs().max()
                different.append(f"rank {rank}, {task.name}: {name} by up to {error:.2e}")
        if found.numbers != single.numbers:
            different.append(f"rank {rank}, {task.name}: {found.numbers} instead of {single.numbers}")
    assert not different, "\n".join(different)


@pytest.mark.parametrize(("layout", "ranks"), entries(tuple(one for one in EQUAL if one.domains == "shard")))
def test_ranks_hold_the_domains_of_one_process(
    outcomes: dict[int, Outcome], reference: dict[Task, Found], layout: Layout, ranks: int
) -> None:
    """Each domain has the same bound, on whichever rank it is stored; no rank stores them all."""
    by_task: dict[Task, list[dict[int, float]]] = {}
    for _, task, found in each_rank(outcomes, layout, ranks):
        by_task.setdefault(task, []).append(found.facts.bounded)
    searched = 0
    for task, shares in by_task.items():
        single = reference[task].facts.bounded
        if not single:
            continue
        searched += 1
        for rank, share in enumerate(shares):
            for identity, lower in share.items():
                assert lower == single[identity], f"{task.name}, rank {rank}: domain {identity}"
            assert ranks == 1 or len(share) < len(single), f"{task.name}: rank {rank} stores all {len(single)} domains"
        assert set().union(*shares) == set(single), task.name
    assert searched >= 1


@pytest.mark.parametrize(("layout", "ranks"), entries(CLOSE))
def test_close(outcomes: dict[int, Outcome], reference: dict[Task, Found], layout: Layout, ranks: int) -> None:
    """Tensor parallelism: within 1e-5 (IBP, CROWN), 1e-4 (alpha), 1e-9 in float64; verdicts alike; ranks agree."""
    first: dict[Task, Found] = {}
    for rank, task, found in each_rank(outcomes, layout, ranks):
        single = reference[task]
        if task.kind == "bab":
            assert found.numbers["closed"] == single.numbers["closed"], f"rank {rank}, {task.name}"
            continue
        limit = 1e-9 if task.dtype == torch.float64 else 1e-5 if task.kind in ("ibp", "crown") else 1e-4
        assert found.tensors.keys() >= single.tensors.keys()
        for name, tensor in found.tensors.items():
            if name in single.tensors:  # nodes between the ranks' shares and whole values come on top
                error = ((tensor - single.tensors[name]).abs() / (1 + single.tensors[name].abs())).max()
                assert error <= limit, f"rank {rank}, {task.name}: {name} by {error:.2e}"
            other = first.setdefault(task, found).tensors[name]
            assert torch.equal(tensor, other), f"{task.name}: ranks differ on {name}"


def test_weights_are_really_cut(outcomes: dict[int, Outcome]) -> None:
    for ranks in RANKS:
        for found in outcomes[ranks].checked():
            for (layout, task), one in found.items():
                assert min(one.facts.blocks.values()) >= 3, f"{layout}, {task.name}: {one.facts.blocks}"
                if "fsdp" in layout and ranks > 1 and not one.error:
                    assert 1 <= one.facts.live_blocks_max <= 2, f"{layout}, {task.name}: {one.facts.live_blocks_max}"
                    assert one.facts.collectives, f"{layout}, {task.name}: nothing was gathered"


def test_rows_are_really_shared(outcomes: dict[int, Outcome], reference: dict[Task, Found]) -> None:
    """Every rank bounds two tiles of some start node at least, one tile is ragged, and together they bound all."""
    for ranks in MORE:
        layouts = [one for one in EQUAL if one.rows == "shard" and ranks in one.ranks and one.name not in MISSING]
        for layout in layouts:
            sharing = (layout.mesh or {}).get("rows", ranks)
            copies = ranks // sharing
            tiles: dict[Task, list[Facts]] = {}
            for _, task, found in each_rank(outcomes, layout, ranks):
                tiles.setdefault(task, []).append(found.facts)
            for task, facts in tiles.items():
                if task.kind in ("ibp", "bab"):
                    continue
                assert any(ragged for _, ragged in facts[0].layouts), f"{task.name}: no ragged tile"
                assert max(count for count, _ in facts[0].layouts) >= 2 * sharing, f"{task.name}: {facts[0].layouts}"
                each = [one.tiles for one in facts]
                assert min(each) >= 2, f"{layout.name}, {task.name}: {each}"
                assert sum(each) == copies * reference[task].facts.tiles, f"{layout.name}, {task.name}: {each}"


def test_sharded_weights_take_their_share(outcomes: dict[int, Outcome], reference: dict[Task, Found]) -> None:
    """Bytes of the storages that a rank keeps: 1/P of all, and one block."""
    for ranks in MORE:
        for rank, task, found in each_rank(outcomes, next(one for one in EQUAL if one.name == "fsdp"), ranks):
            whole = reference[task].facts
            blocks = sum(whole.blocks.values())
            limit = whole.weight_bytes / ranks + len(whole.blocks) * whole.weight_bytes / blocks * 2
            assert found.facts.weight_bytes <= limit, f"rank {rank} of {ranks}, {task.name}"


@pytest.mark.own_threads
def test_under_torchrun(outcomes: dict[int, Outcome], reference: dict[Task, Found], tmp_path: Path) -> None:
    """Ranks that torchrun started itself, thread count and all."""
    done = torchrun(2, ["-m", "tests.parallel.torchrun_matrix", str(tmp_path)], timeout_s=120)
    assert done.code == 0, done.output[-4000:]
    for rank in range(2):
        found: dict[tuple[str, Task], Found] = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert len(found) >= 6
        for (layout, task), one in found.items():
            assert not one.error, one.error
            for name, tensor in one.tensors.items():
                assert torch.equal(tensor, reference[task].tensors[name]), f"rank {rank}, {layout}, {task.name}: {name}"
