"""Recorded passes give what passes done anew give. The recorder here keeps the work instead of a GPU's graph of it:

it replays on the numbers that were put in, on memory that the work before has overwritten, as a GPU does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.recording import Recorder, Recording, RowForm, RowWork
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import LocalWeight
from auto_LiRPA.values import Box
from tests.nets import dense_layers, mlp, residual

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

    @property
    def works(self) -> bool:
        return not self._paused

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


def bounds(asked: Question, recorder: Recorder | None = None) -> Tensor:
    context = DistributedContext.single(settings=ParallelSettings(tile_rows=4))
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
