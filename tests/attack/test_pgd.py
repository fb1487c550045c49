"""The attack finds what exists, in the right box, with every row of the clause, and nothing where nothing exists."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import complete_verifier.attack.scene as scene_module
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from complete_verifier.attack.objective import Best, Candidate
from complete_verifier.attack.pgd import AttackResult, attack, run_attack
from complete_verifier.attack.problems import Problems
from complete_verifier.attack.settings import AttackSettings
from complete_verifier.spec.property import Property
from tests.attack.nets import Layer, box, linear, load, prop, random_layers, region, row, save
from tests.attack.test_problems import nasty_boxes

QUICK = AttackSettings(steps=20, restarts=6)
PLAIN = AttackSettings(steps=20, restarts=6, scouting=False)
UNIT = box(("0", "1"), ("0", "1"))


def forever() -> float:
    return 1e9


def graph_of(tmp_path: Path, layers: list[Layer], dtype: torch.dtype = torch.float32) -> Graph:
    return load(save(layers, tmp_path / "net.onnx"), dtype)


def search(graph: Graph, target: Property | Problems, settings: AttackSettings) -> AttackResult:
    return run_attack(graph, target, settings, "cpu", forever, lambda candidate: True)


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> list[Graph]:
    """Random networks of 1 to 4 inputs."""
    folder = tmp_path_factory.mktemp("nets")
    return [load(save(random_layers(n, n, 8, 8, 2), folder / f"{n}.onnx")) for n in range(1, 5)]


@given(nasty_boxes(), st.sampled_from(["PGD", "diversed_GAMA_PGD"]), st.booleans())
def test_points_never_leave_the_exact_box(
    nets: list[Graph], intervals: list[tuple[str, str]], mode: str, scouting: bool
) -> None:
    """The row asks for a very small output, so that the descent pushes against the faces of the box."""
    where = box(*intervals)
    target = prop(region(where, [row({0: "1"}, "-1e9")], n_outputs=2), n_outputs=2)
    settings = AttackSettings(steps=5, restarts=3, mode=mode, scouting=scouting)
    best = search(nets[len(intervals) - 1], target, settings).best
    assert best is not None
    assert best.x.dtype == np.float32
    decimals = where.decimals_for(best.x)
    assert decimals is not None
    assert where.contains(decimals)


@pytest.mark.parametrize("settings", [QUICK, PLAIN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_best_corner_of_a_linear_network_is_found(
    tmp_path: Path, settings: AttackSettings, dtype: torch.dtype
) -> None:
    """y = x0 - 2 x1 has its least value, -2, at one corner only; -2.001 is beyond reach without leaving the box."""
    graph = graph_of(tmp_path, linear([1, -2]), dtype)
    found = attack(graph, prop(region(UNIT, [row({0: "1"}, "-1.999")])), settings, "cpu", forever)
    assert found is not None
    assert found.worst_row <= 0
    assert np.abs(found.x - [0, 1]).max() < 1e-3
    beyond = search(graph, prop(region(UNIT, [row({0: "1"}, "-2.001")])), settings)
    assert beyond.accepted is None
    assert beyond.best is not None
    assert beyond.best.worst_row == pytest.approx(0.001, abs=1e-5)


def test_all_rows_of_a_clause_are_needed(tmp_path: Path) -> None:
    """Each row can be violated, both together cannot; in the second property they can, in a narrow strip."""
    graph = graph_of(tmp_path, linear([1, 0]))
    apart = [row({0: "1"}, "0.2"), row({0: "-1"}, "-0.8")]
    result = search(graph, prop(region(UNIT, apart)), QUICK)
    assert result.accepted is None
    assert result.best is not None
    assert result.best.worst_row == pytest.approx(0.3, abs=0.2)
    strip = [row({0: "1"}, "0.62"), row({0: "-1"}, "-0.61")]
    found = attack(graph, prop(region(UNIT, strip)), AttackSettings(), "cpu", forever)
    assert found is not None
    assert 0.61 - 1e-6 <= found.x[0] <= 0.62 + 1e-6


def test_any_clause_will_do_and_is_named(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, linear([1, 0], [0, 1]))
    clauses = [[row({0: "1"}, "-1")], [row({1: "-1"}, "-0.9")], [row({0: "-1"}, "-3")]]
    found = attack(graph, prop(region(UNIT, *clauses, n_outputs=2), n_outputs=2), PLAIN, "cpu", forever)
    assert found is not None
    assert (found.region, found.clause) == (0, 1)
    assert found.x[1] >= 0.9 - 1e-6


@pytest.mark.parametrize("settings", [QUICK, PLAIN])
def test_the_region_that_holds_the_counterexample_is_named(tmp_path: Path, settings: AttackSettings) -> None:
    graph = graph_of(tmp_path, linear([1]))
    wanted = [row({0: "-1"}, "-7.3")]
    regions = [region(box((str(lo), str(lo + 1))), wanted) for lo in (0, 3, 7, 5)]
    found = attack(graph, prop(*regions), settings, "cpu", forever)
    assert found is not None
    assert (found.region, found.clause) == (2, 0)
    assert 7.3 <= found.x[0] <= 8


@pytest.mark.parametrize(("margin", "exists"), [(0.4, True), (0.6, False)])
def test_tolerance_is_a_margin_to_be_exceeded(tmp_path: Path, margin: float, exists: bool) -> None:
    """y reaches 0.5 beyond its limit."""
    graph = graph_of(tmp_path, linear([1, 0]))
    target = prop(region(UNIT, [row({0: "-1"}, "-0.5")]))
    found = attack(graph, target, AttackSettings(steps=20, restarts=4, tolerance=margin), "cpu", forever)
    assert (found is not None) == exists
    if found is not None:
        assert found.x[0] >= 0.5 + margin - 1e-6


@pytest.mark.parametrize("mode", ["PGD", "diversed_PGD", "diversed_GAMA_PGD"])
@pytest.mark.parametrize("alpha_scale", [False, True])
@pytest.mark.parametrize("restart_when_stuck", [False, True])
def test_every_mode_searches(tmp_path: Path, mode: str, alpha_scale: bool, restart_when_stuck: bool) -> None:
    layers = random_layers(3, 2, 16, 16, 1)
    graph = graph_of(tmp_path, layers)
    grid = torch.cartesian_prod(torch.linspace(0, 1, 60), torch.linspace(0, 1, 60))
    lowest = float(evaluate(graph, grid).min())
    target = prop(region(UNIT, [row({0: "1"}, str(lowest + 1e-3))]))
    settings = AttackSettings(mode=mode, alpha_scale=alpha_scale, restart_when_stuck=restart_when_stuck, scouting=False)
    assert attack(graph, target, settings, "cpu", forever) is not None


def test_same_seed_same_points_whatever_the_batches(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, random_layers(5, 2, 16, 16, 2))
    target = prop(region(UNIT, [row({0: "1"}, "-9")], [row({1: "1"}, "-9")], n_outputs=2), n_outputs=2)

    def points(batch_size: int = 5, seed: int = 100) -> torch.Tensor:
        settings = AttackSettings(steps=7, restarts=5, scouting=False, batch_size=batch_size, seed=seed)
        return torch.stack(list(_visited(graph, target, settings)))

    reference = points()
    assert torch.equal(points(), reference)
    assert torch.allclose(points(batch_size=2)[:8], reference)
    assert not torch.allclose(points(seed=1)[0], reference[0])
    scouted = search(graph, target, QUICK).best
    again = search(graph, target, QUICK).best
    assert scouted is not None
    assert again is not None
    assert scouted.x.tolist() == again.x.tolist()


def test_memory_bounds_the_points_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More clauses than a batch may hold: all are searched, no evaluation is larger than allowed."""
    graph = graph_of(tmp_path, linear([1, 0], [0, 1]))
    clauses = [[row({0: "1"}, "-9")] for _ in range(40)] + [[row({1: "1"}, "0.001")]]
    target = prop(region(UNIT, *clauses, n_outputs=2), n_outputs=2)
    sizes: list[int] = []

    def recorded(graph: Graph, x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return evaluate(graph, x)

    monkeypatch.setattr(scene_module, "evaluate", recorded)
    neurons = sum(node.size for node in graph.nodes)
    settings = AttackSettings(steps=10, restarts=4, batch_bytes=7 * 3 * 4 * neurons)
    found = attack(graph, target, settings, "cpu", forever)
    assert found is not None
    assert found.clause == 40
    assert max(sizes) <= 7
    result = search(graph, prop(region(UNIT, *clauses[:40], n_outputs=2), n_outputs=2), settings)
    assert result.restarts == 4
    assert result.steps == 10 * 4 * 6  # 40 clauses in 6 groups of 7 at most


def test_weights_accumulate_no_gradients(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, random_layers(2, 2, 8, 1))
    tensors: list[torch.Tensor] = []

    def needs_grad(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor.detach().requires_grad_())
        return tensors[-1]

    store = type(load(save(random_layers(2, 2, 8, 1), tmp_path / "b.onnx")).nodes[1].op.weight)  # type: ignore[attr-defined]
    trained = graph.mapped(needs_grad, lambda weight: store(needs_grad(weight.tensor), weight.shape[0]))  # type: ignore[attr-defined]
    search(trained, prop(region(UNIT, [row({0: "1"}, "-9")])), QUICK)
    assert tensors
    assert all(tensor.grad is None for tensor in tensors)


def test_the_deadline_ends_the_search(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, random_layers(2, 2, 8, 1))
    target = prop(region(UNIT, [row({0: "1"}, "-9")]))
    nothing = run_attack(graph, target, QUICK, "cpu", lambda: 0.0, lambda candidate: True)
    assert (nothing.accepted, nothing.best, nothing.steps) == (None, None, 0)
    began = time.monotonic()
    endless = AttackSettings(steps=10**9, restarts=10**3)
    some = run_attack(graph, target, endless, "cpu", lambda: 0.5 - (time.monotonic() - began), lambda candidate: True)
    assert time.monotonic() - began < 1.5
    assert some.steps > 0
    assert some.best is not None


def test_without_early_stop_the_clearest_point_is_returned(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, random_layers(4, 2, 16, 1))
    lowest = search(graph, prop(region(UNIT, [row({0: "1"}, "-99")])), QUICK).best
    assert lowest is not None
    target = prop(region(UNIT, [row({0: "1"}, str(lowest.worst_row - 99 + 0.3))]))
    first = attack(graph, target, QUICK, "cpu", forever)
    clearest = attack(graph, target, AttackSettings(steps=20, restarts=6, early_stop=False), "cpu", forever)
    assert first is not None
    assert clearest is not None
    assert clearest.worst_row <= first.worst_row
    # a row that is violated by 1e-5 pulls no longer
    assert clearest.worst_row <= 0


def test_a_refused_candidate_does_not_end_the_search(tmp_path: Path) -> None:
    """The first clause's candidates are refused (as when onnxruntime disagrees): the second one's is found."""
    graph = graph_of(tmp_path, linear([1, 0], [0, 1]))
    clauses = [[row({0: "1"}, "0.9")], [row({1: "1"}, "0.05")]]
    target = prop(region(UNIT, *clauses, n_outputs=2), n_outputs=2)
    offered: list[Candidate] = []

    def second_only(candidate: Candidate) -> bool:
        offered.append(candidate)
        return candidate.clause == 1

    result = run_attack(graph, target, QUICK, "cpu", forever, second_only)
    assert offered[0].clause == 0
    assert result.accepted is not None
    assert result.accepted.clause == 1


def test_the_attack_gives_up_after_many_refusals(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, linear([1, 0]))
    offered: list[Candidate] = []

    def never(candidate: Candidate) -> bool:
        offered.append(candidate)
        return False

    result = run_attack(graph, prop(region(UNIT, [row({0: "1"}, "0.9")])), AttackSettings(), "cpu", forever, never)
    assert result.accepted is None
    assert 1 <= len(offered) <= 20


def test_a_clause_without_rows_is_violated_by_every_output(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, linear([1, 0]))
    assert attack(graph, prop(region(UNIT, [])), QUICK, "cpu", forever) is not None


def test_overflow_to_nan_is_no_violation(tmp_path: Path) -> None:
    """inf - inf in the second layer, wherever the search goes."""
    huge = np.array([[3e38, 3e38], [3e38, 3e38]], dtype=np.float32)
    layers = [(huge, np.full(2, 3e38, np.float32)), *linear([1, -1])]
    result = search(graph_of(tmp_path, layers), prop(region(box(("1", "2"), ("1", "2")), [row({0: "1"}, "5")])), QUICK)
    assert result.accepted is None


def test_a_network_without_gradient_is_searched_by_points(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, [(np.zeros((1, 2), np.float32), np.ones(1, np.float32))])
    assert search(graph, prop(region(UNIT, [row({0: "1"}, "0.5")])), QUICK).accepted is None
    assert search(graph, prop(region(UNIT, [row({0: "1"}, "1.5")])), QUICK).accepted is not None


def test_scouting_leads_out_of_a_dead_region(tmp_path: Path) -> None:
    """One neuron that is on in a corner of 80 inputs only: no gradient anywhere near the middle."""
    n = 80
    signs = np.where(np.arange(n) % 3 == 0, -1.0, 1.0).astype(np.float32)
    corner = float(signs.clip(0).sum())
    layers = [(signs[None], np.array([-corner + 3], np.float32)), *linear([1])]
    graph = graph_of(tmp_path, layers)
    target = prop(region(box(*[("0", "1")] * n), [row({0: "-1"}, "-2")]))
    assert attack(graph, target, AttackSettings(scouting=False), "cpu", forever) is None
    assert attack(graph, target, AttackSettings(), "cpu", forever) is not None


def test_narrow_targets_of_few_inputs_are_hit(tmp_path: Path) -> None:
    """Four rows leave a patch 2e-4 wide, which steps of fixed sizes jump over."""
    graph = graph_of(tmp_path, linear([1, 1], [1, -1]))
    patch = [(0, "0.9"), (1, "0.3")]
    rows = [row({i: "1"}, f"{middle}001") for i, middle in patch]
    rows += [row({i: "-1"}, str(-(float(middle) - 1e-4))) for i, middle in patch]
    target = prop(region(UNIT, rows, n_outputs=2), n_outputs=2)
    assert attack(graph, target, AttackSettings(scouting=False), "cpu", forever) is None
    found = attack(graph, target, AttackSettings(), "cpu", forever)
    assert found is not None
    assert np.abs(found.x - [0.6, 0.3]).max() < 1e-3


def test_sub_boxes_are_searched_apart(tmp_path: Path) -> None:
    """Branch and bound's boxes: only one of three holds the counterexample."""
    graph = graph_of(tmp_path, linear([1, 1]))
    problems = Problems.from_property(prop(region(UNIT, [row({0: "-1"}, "-1.5")])), (2,), torch.float32, "cpu")
    lower = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.0, 0.5]])
    upper = torch.tensor([[0.5, 0.9], [1.0, 1.0], [0.4, 1.0]])
    found = attack(graph, problems.narrowed(lower, upper, torch.zeros(3, dtype=torch.int64)), QUICK, "cpu", forever)
    assert found is not None
    assert found.problem == 1
    assert (found.x >= 0.5).all()
    others = problems.narrowed(lower[[0, 2]], upper[[0, 2]], torch.zeros(2, dtype=torch.int64))
    assert attack(graph, others, QUICK, "cpu", forever) is None


def _visited(graph: Graph, target: Property, settings: AttackSettings) -> Iterator[torch.Tensor]:
    """The points of one start, in order (without the centre)."""
    seen: list[torch.Tensor] = []
    observe = Best.observe

    def recorded(self: Best, index: torch.Tensor | slice, x: torch.Tensor, worst: torch.Tensor) -> None:
        seen.append(x.detach().clone())
        observe(self, index, x, worst)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Best, "observe", recorded)
        search(graph, target, settings)
    return (x[0, 0] for x in seen[1:])


@pytest.mark.parametrize("alpha", ["auto", 0.03])
def test_steps_are_those_of_adam_signs(tmp_path: Path, alpha: float | str) -> None:
    """Against full Adam moments, both of them, written out (interface 7.10)."""
    graph = graph_of(tmp_path, random_layers(9, 3, 16, 16, 2))
    where = box(("0.5", "1"), ("-1", "1"), ("0", "0.01"))
    middle = float(evaluate(graph, torch.tensor([[0.75, 0.2, 0.005]]))[0, 0])
    # Two rows that pull in opposite directions, so that the path swings instead of resting in a corner.
    rows = [row({0: "2"}, str(2 * middle)), row({0: "-1"}, str(-middle - 1))]
    target = prop(region(where, rows, n_outputs=2), n_outputs=2)
    settings = AttackSettings(steps=30, restarts=1, scouting=False, early_stop=False, alpha=alpha, lr_decay=0.9)  # type: ignore[arg-type]
    points = list(_visited(graph, target, settings))
    assert len(points) == 31
    mat, rhs = torch.tensor([[2.0, 0.0], [-1.0, 0.0]]), torch.tensor([2 * middle, -middle - 1])
    lower, upper = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 1.0, 0.01])
    first, second = torch.zeros(3), torch.zeros(3)
    step_size = 2 / 2 / 4 if alpha == "auto" else float(alpha)
    for t, (x, following) in enumerate(zip(points, points[1:], strict=False), start=1):
        point = x.clone().requires_grad_()
        loss = -torch.clamp(evaluate(graph, point[None])[0] @ mat.T - rhs, min=-1e-5)
        (gradient,) = torch.autograd.grad(loss.sum(), point)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        update = first / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        moved = x + step_size * 0.9 ** (t - 1) / (1 - 0.9**t) * update.sign()
        assert torch.allclose(torch.minimum(torch.maximum(moved, lower), upper), following, atol=1e-6)
    inner = torch.stack(points[1:])[:, 1]
    assert ((inner > -1) & (inner < 1)).sum() > 10, "most of the path lies inside, where the step size shows"
