"""Recorded passes give what passes done anew give. The recorder here keeps the work instead of a GPU's graph of it:

it replays on the numbers that were put in, on memory that the work before has overwritten, as a GPU does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import auto_LiRPA.parallel.context as context_file
from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from auto_LiRPA.bounds.intermediate import crown_boxes
from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.rows import NeuronList
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.bounds.tile_passes import TilePasses
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.placements import Whole
from auto_LiRPA.operators.arithmetic import Affine
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.recording import Recorder, Recording, RowForm, RowWork
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import LocalWeight
from auto_LiRPA.parallel.tiles import cut
from auto_LiRPA.values import Box
from tests.nets import Builder, dense_layers, mlp, residual

SIZES = [5, 19, 19, 19, 7]


@dataclass
class Kept(Recording):
    """A work that is done again at each replay."""

    coef: Tensor
    bias: Tensor | None
    work: RowWork
    owner: Keeper

    def replay(self) -> Tensor:
        self.owner.replays += 1
        found = self.work(self.coef.clone(), None if self.bias is None else self.bias.clone())
        self.coef.fill_(torch.nan)  # a graph uses this memory for other things
        return found


class Keeper(Recorder):
    """Records anything."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[RowForm] = []
        self.replays = 0

    def ready(self) -> None:
        return None

    def record(self, form: RowForm, work: RowWork) -> Recording | None:
        self.forms.append(form)
        coef = torch.full(form.coef, torch.nan, dtype=form.dtype)
        bias = None if form.bias is None else torch.full(form.bias, torch.nan, dtype=form.dtype)
        return Kept(coef, bias, work, self)


Question = tuple[Graph, Box]


def question(kind: str, block_mib: float = 16.0, bias: bool = True, seed: int = 3, batch: int = 1) -> Question:
    layers = dense_layers(SIZES, 3)
    if not bias:
        layers = [replace(layer, bias=torch.zeros_like(layer.bias)) for layer in layers]
    graph = (mlp if kind == "mlp" else residual)(layers, block_mib)
    return graph, box(seed, batch)


def box(seed: int, batch: int = 1) -> Box:
    x = torch.randn(batch, SIZES[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Box(x - 0.4, x + 0.4)


def bounds(asked: Question, recorder: Recorder | None = None, tile_rows: int = 4) -> Tensor:
    context = DistributedContext.single(settings=ParallelSettings(tile_rows=tile_rows))
    if recorder is not None:
        context = replace(context, recorder=recorder)
    with torch.no_grad():
        settings = BoundSettings(sparse_intermediate=False)
        found = compute(*asked, Query(), Method.CROWN, context, settings)
    assert found.lower is not None and found.upper is not None
    return torch.stack([found.lower.bound, found.upper.bound])


@pytest.mark.parametrize("kind", ["mlp", "residual"])
@pytest.mark.parametrize("block_mib", [16.0, 6 * 19 * 8 / 2**20])
@pytest.mark.parametrize("bias", [True, False])
def test_replays_have_the_same_bits(kind: str, block_mib: float, bias: bool) -> None:
    keeper = Keeper()
    asked = question(kind, block_mib, bias)
    recorded = bounds(asked, keeper)
    assert torch.equal(recorded, bounds(asked))
    assert keeper.replays >= 3 * len(keeper.forms) > 0


def test_later_calls_replay_on_their_own_region() -> None:
    keeper = Keeper()
    asked = question("mlp")
    bounds(asked, keeper)
    made, replays = len(keeper.forms), keeper.replays
    other = (asked[0], box(4))
    assert torch.equal(bounds(other, keeper), bounds(other))
    assert len(keeper.forms) == made and keeper.replays == 2 * replays + made  # the first tile, too


def test_another_batch_is_recorded_anew() -> None:
    keeper = Keeper()
    asked = question("mlp")
    bounds(asked, keeper)
    made = len(keeper.forms)
    other = (asked[0], box(4, batch=2))
    assert torch.equal(bounds(other, keeper), bounds(other))
    assert len(keeper.forms) == 2 * made


def test_weights_that_were_exchanged_are_noticed() -> None:
    keeper = Keeper()
    asked = question("mlp")
    bounds(asked, keeper)
    made = len(keeper.forms)
    for weight in asked[0].weights:
        assert isinstance(weight, LocalWeight)
        weight.tensor.mul_(0.5)  # in place: recordings read it where it lies
    assert torch.equal(bounds(asked, keeper), bounds(asked))
    assert len(keeper.forms) == made
    for weight in asked[0].weights:
        assert isinstance(weight, LocalWeight)
        weight.tensor.data = weight.tensor.data * 2
    assert torch.equal(bounds(asked, keeper), bounds(asked))
    assert len(keeper.forms) > made


def test_nothing_of_another_network_is_kept() -> None:
    keeper = Keeper()
    first, second = question("mlp"), question("residual")
    bounds(first, keeper)
    assert torch.equal(bounds(second, keeper), bounds(second))
    assert torch.equal(bounds(first, keeper), bounds(first))


def test_nothing_is_recorded_in_a_pause() -> None:
    keeper = Keeper()
    with keeper.paused():
        bounds(question("mlp"), keeper)
    assert not keeper.forms


def test_nothing_is_recorded_where_gradients_are_wanted() -> None:
    keeper = Keeper()
    graph, region = question("mlp")
    context = replace(DistributedContext.single(settings=ParallelSettings(tile_rows=4)), recorder=keeper)
    compute(graph, region, Query(), Method.CROWN, context, BoundSettings())
    assert not keeper.forms


def test_rows_that_begin_at_an_activation() -> None:
    """No weight's rows are taken, so the start node itself is a part of the pass."""
    build, at = Builder((SIZES[0],)), 0
    for layer in dense_layers(SIZES, 3):
        at = build.relu(build.dense(layer, at))
    graph, keeper = build.graph(), Keeper()
    for seed in (3, 4):
        asked = (graph, box(seed))
        assert torch.equal(bounds(asked, keeper), bounds(asked))
    assert any(form.coef[-1] == SIZES[-1] for form in keeper.forms)


def test_a_constant_of_the_start_node_itself_that_moved_is_noticed() -> None:
    first, second = dense_layers([5, 9, 9], 3)
    build, scale = Builder((5,)), torch.rand(9, dtype=torch.float64) + 0.5
    at = build.dense(second, build.relu(build.dense(first, 0)))
    build.add(Affine(scale, None), (at,), (9,))
    keeper, asked = Keeper(), (build.graph(), box(3))
    bounds(asked, keeper)
    bounds(asked, keeper)
    made = len(keeper.forms)
    assert made == 1  # the output alone is bounded by passes, and they begin at it
    scale.data = 3 * scale
    assert torch.equal(bounds(asked, keeper), bounds(asked))
    assert len(keeper.forms) == 2


def test_recordings_outlive_inference_mode() -> None:
    keeper, asked = Keeper(), question("mlp")
    with torch.inference_mode():
        bounds(asked, keeper)
    other, made = (asked[0], box(4)), len(keeper.forms)
    assert torch.equal(bounds(other, keeper), bounds(other))
    assert len(keeper.forms) == made > 0


def test_what_a_recording_holds_does_not_grow_with_their_number() -> None:
    """All recordings read one copy of the relaxations, and of these no more than a pass does."""
    keeper, asked = Keeper(), question("mlp")
    held = []
    for rows in range(1, 7):
        bounds(asked, keeper, rows)
        kept = keeper.kept(asked[0]).values()
        places = {p.data_ptr(): p.numel() for one in kept if hasattr(one, "memory")
                  for part in one.memory.places.values() for p in part}  # fmt: skip
        held.append(sum(places.values()))
    assert len(keeper.forms) >= 6 * 3
    assert held == [3 * 3 * 19] * 6


def test_tiles_of_two_start_nodes_in_turns() -> None:
    """Both read the same memory: whose turn it is fills it anew."""
    graph, region = question("mlp")
    keeper = Keeper()
    context = DistributedContext.single(settings=ParallelSettings(tile_rows=4))
    plain: list[TilePasses] = []
    recorded: list[TilePasses] = []
    with torch.no_grad():
        for seed in (3, 4):
            asked = box(seed)
            middle = crown_boxes(graph, asked, context, BoundSettings())
            for node in (3, 5):
                neurons, tiles = NeuronList.of(torch.arange(19), torch.float64), cut(19, 4)
                for passes, one in ((plain, context), (recorded, replace(context, recorder=keeper))):
                    passes.append(TilePasses(graph, node, neurons, tiles, asked, middle.relaxations, one))
        for position in (0, 1, 2, 3, 4):
            for mine, wanted in zip(recorded, plain, strict=True):
                assert torch.equal(mine(position), wanted(position))
    assert len(keeper.forms) == 2 and keeper.replays == 18  # all but the first tile of each start node


@pytest.mark.parametrize("possible", [True, False])
def test_all_ranks_record_or_none(possible: bool) -> None:
    """Sums over ranks may be in recordings of all of them, or of none: another rank says whether it could."""
    (graph, region), keeper, said = question("mlp"), Keeper(), 0

    def gather(flag: Tensor) -> Tensor:
        nonlocal said
        said += 1
        return torch.stack([flag, torch.full_like(flag, possible)])

    context = DistributedContext.single(settings=ParallelSettings(tile_rows=4))
    neurons, tiles = NeuronList.of(torch.arange(19), torch.float64), cut(19, 4)
    with torch.no_grad():
        relaxations = crown_boxes(graph, region, context, BoundSettings()).relaxations
        plain = TilePasses(graph, 5, neurons, tiles, region, relaxations, context)
        among_ranks = replace(graph)
        vars(among_ranks)["spread"] = SimpleNamespace(
            ranks=SimpleNamespace(gather=gather), places=[Whole()] * len(graph.nodes), sums=lambda node: False
        )
        for _ in range(2):
            passes = TilePasses(
                among_ranks, 5, neurons, tiles, region, relaxations, replace(context, recorder=keeper)
            )  # fmt: skip
            assert all(torch.equal(passes(i), plain(i)) for i in range(5))
    # asked when it was recorded, and when it was checked; a refusal is for good
    assert said == (2 if possible else 1) and len(keeper.forms) == 1
    assert keeper.replays == (9 if possible else 0)
    assert keeper.works == possible


def test_calls_of_one_module_share_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    keepers: list[Keeper] = []

    def make(*_: object) -> Keeper:
        keepers.append(Keeper())
        return keepers[-1]

    monkeypatch.setattr(context_file, "make_recorder", make)
    net = nn.Sequential(nn.Linear(5, 19), nn.ReLU(), nn.Linear(19, 19), nn.ReLU(), nn.Linear(19, 3)).double()
    x = torch.rand(1, 5, dtype=torch.float64)
    module = BoundedModule(net, x, parallel=ParallelSettings(tile_rows=4))
    made = []
    with torch.no_grad():
        for eps in (0.1, 0.1, 0.2):
            given = BoundedTensor(x, PerturbationLpNorm(eps=eps))
            module.compute_bounds((given,), method="CROWN", bound_upper=False)
            made.append([len(keeper.forms) for keeper in keepers])
    assert sum(made[0]) > 0 and made[1] == made[2]


def test_a_replay_with_other_bits_ends_recording() -> None:
    """A graph that leaves out the rows' constants, say: its first replay is compared, and no bound rests on it."""

    class Forgetful(Keeper):
        def record(self, form: RowForm, work: RowWork) -> Recording | None:
            return super().record(form, lambda coef, bias: work(coef, None))

    keeper, asked = Forgetful(), question("mlp")
    for _ in range(2):
        assert torch.equal(bounds(asked, keeper), bounds(asked))
    assert len(keeper.forms) == keeper.replays == 1 and not keeper.works
