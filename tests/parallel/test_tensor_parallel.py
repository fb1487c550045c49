"""Tensor parallelism bounds as one rank does, to rounding, on any graph; zones are found; mistakes in them show."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from auto_LiRPA.errors import ContractError
from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.graph.placements import Partial, Sharded, Spread, Whole
from auto_LiRPA.graph.reassembly import whole_graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.graph.tensor_parallel import choose, find_zones, shared_share, tensor_parallel, weight_elements
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.arithmetic import Affine
from auto_LiRPA.operators.base import Input, Operator
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.parallel_maps import ColumnLinear, Enter, Exit
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import LocalStore
from tests.nets import dense_layers, mlp
from tests.parallel.launching import Launch, launch, once
from tests.parallel.tp_faults import FAULTS
from tests.parallel.tp_networks import NETS, Layers
from tests.parallel.tp_search_workers import SearchCase
from tests.parallel.tp_workers import Case, Way
from tests.support import shared_dir

TIGHT, ALPHA, DOUBLE = 1e-5, 1e-4, 1e-9
CROWN_WAYS: tuple[Way, ...] = ("ibp", "crown-ibp", "crown", "forward")
ALPHA_WAYS: tuple[Way, ...] = ("fixed", "stream", "keep")
CASES = {
    "one": (1, Case(("mlp2",), ("ibp", "crown"))),
    "two": (2, Case(("mlp6", "cnn"), ("ibp", "crown"), iterations=2)),
    "three": (3, Case(("mlp3", "elementwise"), (*CROWN_WAYS, *ALPHA_WAYS), torch.float64, iterations=2)),
    "residual": (3, Case(("residual",), ("crown", "fixed"), torch.float64, iterations=2)),
    "four": (4, Case(("mlp3",), ("crown",), iterations=2)),
    "mesh": (4, Case(("mlp3",), ("crown", "keep"), torch.float64, mesh=(("weights", 2), ("rows", 2)), iterations=2)),
}
LONG = {
    f"{ranks} ranks": (ranks, Case(tuple(NETS), (*CROWN_WAYS, *ALPHA_WAYS), dtype))
    for ranks, dtype in ((2, torch.float32), (3, torch.float64), (4, torch.float32))
}
SEARCHES = (SearchCase("mlp2", 0.3, 0.3, 3), SearchCase("elementwise", 0.3, 0.2, 2))


def _all() -> dict[str, Any]:
    """One start of the imports for everything that needs ranks."""
    found: dict[str, Any] = {}
    worker, searched = "tests.parallel.tp_workers", "tests.parallel.tp_search_workers:searched"
    plan = {name: Launch(ranks, f"{worker}:compare", case, timeout_s=150) for name, (ranks, case) in CASES.items()}
    plan["search"] = Launch(3, searched, (SEARCHES, ()), timeout_s=150)
    mesh = (("weights", 2), ("domains", 2))
    plan["search on a mesh"] = Launch(4, searched, (SEARCHES[:1], mesh), timeout_s=150)
    plan["module"] = Launch(3, f"{worker}:module", None, timeout_s=150)
    plan["faults"] = Launch(3, "tests.parallel.tp_faults:mutated", None, timeout_s=150)
    for name, outcome in zip(plan, launch(list(plan.values())), strict=True):
        found[name] = outcome.checked()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return once(tmp_path_factory, "tensor-parallel", _all)


@pytest.mark.parametrize("name", CASES)
def test_bounds_are_those_of_one_rank(found: dict[str, Any], name: str) -> None:
    _check(*CASES[name], found[name])


@pytest.mark.soak
@pytest.mark.parametrize("name", LONG)
def test_bounds_are_those_of_one_rank_on_every_network(name: str) -> None:
    ranks, case = LONG[name]
    (outcome,) = launch([Launch(ranks, "tests.parallel.tp_workers:compare", case, timeout_s=900)])
    _check(ranks, case, outcome.checked())


def _check(ranks: int, case: Case, reports: list[Any]) -> None:
    for report in reports:
        assert len(report["distance"]) >= len(case.nets) * (len(case.ways) + 3)
        for (net, way), far in report["distance"].items():
            limit = DOUBLE if case.dtype == torch.float64 else ALPHA if way in ALPHA_WAYS else TIGHT
            assert far <= limit, (net, way, far)
    assert all(all(report["agree"].values()) for report in reports), "ranks differ in bits"
    assert all(all(report["sound"].values()) for report in reports)
    assert ranks == 1 or all(report["spread"][net] > 0 for report in reports for net in case.nets)


def test_each_zone_is_summed_once_and_its_constants_once_a_pass(found: dict[str, Any]) -> None:
    """The collectives of a pass are few: a bound cannot have been made by gathering weights."""
    report = found["four"][0]
    kinds = report["collectives"]["mlp3"]
    assert set(kinds) <= {"reduce", "gather", "broadcast", "agree"}
    # boxes of two zones, for each of the methods and both sides, and a few comparisons of the test
    assert kinds["gather"] <= 40


@pytest.mark.parametrize("fault", FAULTS[1:])
def test_a_planted_fault_shows(found: dict[str, Any], fault: str) -> None:
    for report in found["faults"]:
        assert report["none"] < DOUBLE
        assert report[fault] > 1e-2


@pytest.mark.parametrize("net", [case.net for case in SEARCHES])
def test_branch_and_bound_searches_the_same_tree(found: dict[str, Any], net: str) -> None:
    for report in (*found["search"], *found["search on a mesh"]):
        if net not in report:
            continue
        single, spread = report[net]
        assert spread[:4] == single[:4]
        assert spread[4] == pytest.approx(single[4], abs=1e-8)
    assert any(report[case.net][0][2] > 0 for case in SEARCHES for report in found["search"]), "nothing was split"


def test_a_bounded_module_gives_the_same_through_its_public_face(found: dict[str, Any]) -> None:
    """Bounds before and after its weights change, boxes by name there and back, an inner node, coefficients."""
    for report in found["module"]:
        assert "mode tp gives no gradients" in report.pop("gradients")
        assert len(report) == 9
        assert all(far < DOUBLE for far in report.values()), report


def test_the_papers_way_is_loose_and_ours_is_exact() -> None:
    folder = shared_dir() / "benchmarks" / "mnist_fc" / "onnx"
    path = folder / "mnist-net_256x6.onnx"
    if not path.exists():
        pytest.skip(f"no {path.name} beside the checkout")
    (outcome,) = launch([Launch(2, "tests.parallel.tp_workers:onnx", (str(path), 0.02))])
    for report in outcome.checked():
        assert report["exact relative"] <= TIGHT
        assert report["ibp"] > 100
        assert report["ibp sound"] == report["exact sound"] == 1.0


# -- zones ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("depth", range(2, 7))
def test_nearly_all_of_an_mlp_is_shared_out(depth: int) -> None:
    graph = mlp(dense_layers([784, *[256] * depth, 10], 0, torch.float32))
    assert shared_share(graph, 2) >= 0.9


def test_shares_of_networks_with_maps() -> None:
    """All but a layer without a partner of a CNN; of a residual net the blocks of two layers, not those of one."""
    assert shared_share(NETS["cnn"](torch.float32), 2) > 0.95
    assert 0.75 < shared_share(NETS["residual"](torch.float32), 2) < 0.95
    build = Layers((6,), torch.float32)
    at = build.relu(build.linear(0, 8))
    for _ in range(2):
        at = build.relu(build.add(_add(), (at, build.relu(build.linear(at, 8))), (8,)))
    build.linear(at, 8)
    assert shared_share(build.graph(), 2) == 0.0, "no pair closes where every layer has a shortcut around it"


def _add() -> Operator:
    from auto_LiRPA.operators.arithmetic import Add

    return Add()


def test_the_best_choice_of_pairs_is_found() -> None:
    """In a chain of layers of sizes 1, 10, 10, 1 the pairs are the outer ones, though the middle one is the largest."""
    graph = mlp(dense_layers([4, 40, 40, 40, 4], 0, torch.float32))
    assert [sorted(zone.columns | zone.rows) for zone in choose(find_zones(graph, 2))] == [[1, 3], [5, 7]]
    assert shared_share(graph, 2) == 1.0


def test_a_layer_smaller_than_the_number_of_ranks_stays_whole() -> None:
    assert find_zones(mlp(dense_layers([5, 3, 5], 0)), 4) == []


class _Alone:
    """One of several ranks, the others being absent: sums and gathers see its part alone."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def broadcast(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        return tensor

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        return torch.stack([part] * self.size)


def _context(rank: int, size: int) -> DistributedContext:
    from dataclasses import replace

    return replace(DistributedContext.single(settings=ParallelSettings(mode="tp")), weights=_Alone(rank, size))  # type: ignore[arg-type]


@pytest.mark.parametrize("net", ["mlp3", "elementwise", "cnn", "residual"])
def test_a_rank_keeps_the_storage_of_its_slices_only(net: str) -> None:
    whole, size = NETS[net](torch.float32), 3
    zones = choose(find_zones(whole, size))
    elements, spread = weight_elements(whole), sum(zone.elements for zone in zones)
    kept = []
    for rank in range(size):
        store = LocalStore()
        graph = tensor_parallel(whole, _context(rank, size), store)
        storages = {w.tensor.untyped_storage().data_ptr(): w.tensor for w in graph.weights}  # type: ignore[attr-defined]
        assert store.weight_bytes() == sum(t.untyped_storage().nbytes() for t in storages.values())
        assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in storages.values())
        kept.append(store.weight_bytes() // 4)
        assert graph.spread is not None
    assert sum(kept) == spread + size * (elements - spread)


def test_parts_put_together_are_the_network_again() -> None:
    """With one rank of one the reassembled graph is the network; `searched` does it with several."""
    whole = NETS["elementwise"](torch.float64)
    assert whole_graph(whole) is whole
    context = DistributedContext.single(settings=ParallelSettings(mode="tp"))
    assert tensor_parallel(whole, context) is whole


# -- types ------------------------------------------------------------------------------------------------------------
class _Chain:
    """Nodes one after the other."""

    def __init__(self) -> None:
        self.ranks = _Alone(0, 2)
        self.nodes = [Node(0, "x", Input(), (), (4,))]

    def then(self, op: Operator, width: int) -> _Chain:
        self.nodes.append(Node(len(self.nodes), f"n{len(self.nodes)}", op, (len(self.nodes) - 1,), (width,)))
        return self

    def enter(self) -> _Chain:
        return self.then(Enter(self.ranks), self.nodes[-1].shape[0])

    def column(self, width: int) -> _Chain:
        weight = LocalStore().place(torch.ones(width // 2, self.nodes[-1].shape[0]))
        return self.then(ColumnLinear(weight, torch.ones(width // 2), torch.ones(width)), width)

    def row(self, width: int, bias: torch.Tensor | None = None) -> _Chain:
        weight = LocalStore().place(torch.ones(width, self.nodes[-1].shape[0] // 2))
        return self.then(Linear(weight, bias), width)

    def exit(self) -> _Chain:
        return self.then(Exit(self.ranks, None, 0), self.nodes[-1].shape[0])

    def relu(self) -> _Chain:
        return self.then(Relu(), self.nodes[-1].shape[0])

    def spread(self) -> Spread | None:
        return Graph(tuple(self.nodes), len(self.nodes) - 1).spread


def test_a_well_formed_zone_has_its_placements() -> None:
    spread = _Chain().enter().column(6).relu().row(5).exit().relu().spread()
    assert spread is not None
    assert [type(p) for p in spread.places[3:]] == [Sharded, Partial, Whole, Whole]
    assert spread.shapes[3] == (3,) and spread.shapes[4] == (5,)
    assert [spread.sums(i) for i in range(7)] == [False, True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda c: c.enter().column(6).row(5).relu().exit(), "partial"),  # relu before the reduce
        (lambda c: c.enter().column(6).relu().row(5).relu(), "partial"),  # the reduce is missing
        (lambda c: c.enter().relu(), "copied"),  # its coefficients would be partial sums
        (lambda c: c.enter().column(6).relu().row(5).exit().column(6), "does not fit"),  # no sum of coefficients
        (lambda c: c.enter().column(6).relu().row(5, torch.ones(5)).exit(), "added by every rank"),  # bias on all
        (lambda c: c.enter().column(6).relu().row(5).exit().exit(), "whole"),  # reduced twice
        (lambda c: c.enter().enter().column(6), "copied"),
        (lambda c: c.enter().column(6).relu().then(Affine(None, torch.ones(6)), 6).exit(), "sharded"),
        (lambda c: c.enter().column(6).row(5).then(Affine(None, torch.ones(5)), 5).exit(), "partial"),
    ],
)
def test_no_operator_may_see_a_partial_sum_that_it_must_not(wrong: Any, what: str) -> None:
    with pytest.raises(ContractError, match=what):
        wrong(_Chain()).spread()


def test_values_go_through_zones_of_a_single_rank() -> None:
    chain = _Chain()
    chain.ranks = _Alone(0, 1)
    weight = LocalStore().place(torch.ones(6, 4))
    chain.enter().then(ColumnLinear(weight, None, None), 6).relu()
    graph = Graph(tuple(chain.nodes), 3)
    assert torch.equal(evaluate(graph, torch.ones(2, 4)), torch.full((2, 6), 4.0))
