"""The passes themselves under the type checker `spmd_types`: no sign split, clamp or abs ever sees a partial sum.

Our placements are checked when a graph is made (test_tensor_parallel.py). This is the second opinion: every torch
operation of whole bounding passes is watched, on a process group of two ranks that exist in name only. The checker
cannot know that a product with a rank's own rows or columns of a weight is a partial sum; that much the test tells it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from auto_LiRPA.bounds import ascent
from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.bounds.tile_sums import TileSums
from auto_LiRPA.graph import placements
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.placements import Partial, Sharded, Spread
from auto_LiRPA.graph.tensor_parallel import tensor_parallel
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.parallel_maps import Enter, Exit
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.groups import Group
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.values import Box, Interval
from tests.parallel.patches import replaced_everywhere
from tests.parallel.tp_networks import NETS, question, rows

spmd = pytest.importorskip("spmd_types", reason="spmd_types is not installed (a development dependency)")
SIZE = 2


class _Types:
    """The fake group, and the sharding that the checker is told of."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def give(self, tensor: Tensor, kind: Any) -> Tensor:
        spmd.assert_type(tensor, {self.group: kind})
        return tensor

    def of(self, tensor: Tensor) -> Any:
        return spmd.maybe_get_axis_local_type(tensor, self.group)

    def partial(self, product: Tensor) -> Tensor:
        """A product with this rank's own part of a weight, over an axis that is shared out: a partial sum."""
        found: Tensor = spmd.reinterpret(product, self.group, src=spmd.V, dst=spmd.P)
        return found


class _Ranks(Group):
    """A group whose collectives are the checker's own; copies have the type that they have on all ranks."""

    types: _Types

    def total(self, tensor: Tensor) -> Tensor:
        types = _Ranks.types
        if types.of(tensor) is spmd.V:  # constants of a rank's own neurons
            tensor = types.partial(tensor)
        summed: Tensor = spmd.all_reduce(tensor, types.group, src=spmd.P, dst=spmd.R)
        return summed

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        with spmd.no_typecheck():
            tensor.fill_(0.5)
        return tensor

    def gather(self, part: Tensor) -> Tensor:
        with spmd.no_typecheck():
            every = torch.stack([part.detach().clone()] * SIZE)
        return _Ranks.types.give(every, spmd.R)

    def numbers(self, values: Any) -> list[list[float]]:
        return [list(values)] * SIZE


_ASCEND = ascent.ascend


def _one_by_one(variables: Any, gradients: Any, moments: ascent.Moments, rates: Any, step: int) -> None:
    """The same Adam step variable by variable: the checker gives all tensors of one fused call one type."""
    for each in zip(variables, gradients, moments.first, moments.second, rates, strict=True):
        variable, gradient, first, second, rate = each
        _ASCEND([variable], [gradient], ascent.Moments([first], [second]), [rate], step)


@pytest.fixture
def types() -> Iterator[_Types]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group(backend="fake", rank=0, world_size=SIZE, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (SIZE,), mesh_dim_names=("tp",))
        _Ranks.types = _Types(mesh.get_group("tp"))
        with spmd.set_current_mesh(mesh):
            yield _Ranks.types
    finally:
        dist.destroy_process_group()


def _context() -> DistributedContext:
    one = DistributedContext.single(settings=ParallelSettings(mode="tp", tile_rows=7))
    ranks = _Ranks(0, SIZE, Counters(), (0, 1))
    return replace(one, world_size=SIZE, world=ranks, weights=ranks)


def _typed(graph: Graph, types: _Types) -> None:
    """Tell the checker which weights and constants are a rank's own."""
    spread = graph.spread
    assert spread is not None
    for node in graph.nodes:
        own = isinstance(spread.places[node.id], Sharded | Partial)
        for name, value in vars(node.op).items():
            if isinstance(value, Tensor):
                types.give(value, spmd.V if own and name != "whole_bias" else spmd.R)
    for weight, own in _weights(graph):
        types.give(weight, spmd.V if own else spmd.R)


def _weights(graph: Graph) -> list[tuple[Tensor, bool]]:
    spread = graph.spread
    assert spread is not None
    return [
        (n.op.weight.tensor, isinstance(spread.places[n.id], Sharded | Partial))  # type: ignore[attr-defined]
        for n in graph.nodes
        if isinstance(n.op, Linear | Conv)
    ]


@contextmanager
def _watched(types: _Types, graph: Graph) -> Iterator[None]:
    """All operations are checked; a product of a sharded operand with a sharded weight is a partial sum."""

    def contraction(original: Any) -> Any:
        def product(self: Any, x: Tensor, *rest: Any, **more: Any) -> Tensor:
            found: Tensor = original(self, x, *rest, **more)
            return types.partial(found) if types.of(x) is spmd.V else found

        return product

    def part(original: Any) -> Any:
        def own(self: Any, node: int, value: Tensor, leading: int = 1) -> Tensor:
            found: Tensor = original(self, node, value, leading)
            if not self.sharded(node):
                return found
            with spmd.no_typecheck():
                found = found.clone()
            return types.give(found, spmd.V)

        return own

    def adjoint(original: Any) -> Any:
        def unpacked(self: TileSums, node: int) -> Interval | None:
            """Adjoints of all nodes are summed as one vector; here each has its own type again."""
            found: Interval | None = original(self, node)
            if found is None:
                return None
            with spmd.no_typecheck():
                sides = [side.clone() for side in (found.lower, found.upper)]
            assert graph.spread is not None
            kind = spmd.V if graph.spread.sharded(node) else spmd.R
            return Interval(*(types.give(side, kind) for side in sides))

        return unpacked

    with ExitStack() as stack:
        stack.enter_context(patch.object(TileSums, "box", adjoint(TileSums.box)))
        for owner in (Linear, Conv):
            for name in ("_times", "_times_transposed"):
                stack.enter_context(patch.object(owner, name, contraction(getattr(owner, name))))
        stack.enter_context(patch.object(Spread, "part", part(Spread.part)))
        stack.enter_context(replaced_everywhere(ascent.ascend, _one_by_one))
        stack.enter_context(spmd.checker.typecheck("permissive"))
        yield


def _bounds(types: _Types, net: str, way: str) -> None:
    """Bound a network under the checker; what comes out has to be the same on all ranks."""
    import spmd_types.checker  # noqa: F401

    context, whole = _context(), NETS[net](torch.float64)
    graph = tensor_parallel(whole, context)
    method = {"ibp": Method.IBP, "crown": Method.CROWN, "keep": Method.ALPHA_CROWN, "fixed": Method.ALPHA_CROWN}[way]
    alpha = AlphaSettings(mode="keep" if way == "keep" else "fixed", iterations=2)
    settings = BoundSettings(sparse_intermediate=False, compare_with_ibp=False, alpha=alpha)
    box = question(whole, torch.float64)
    assert isinstance(box, Box)
    with torch.no_grad(), _watched(types, graph):
        _typed(graph, types)
        region = Box(types.give(box.lower, spmd.R), types.give(box.upper, spmd.R))
        query = Query(c=types.give(rows(whole, torch.float64), spmd.R))
        found = compute(graph, region, query, method, context, settings)
        for side in (found.lower, found.upper):
            assert side is not None
            assert types.of(side.bound) is spmd.R, f"the bounds are {types.of(side.bound)}, not the same on all ranks"


@pytest.mark.parametrize("way", ["ibp", "crown", "fixed", "keep"])
@pytest.mark.parametrize("net", ["mlp3", "residual"])
def test_no_operation_of_a_pass_sees_a_partial_sum_that_it_must_not(types: _Types, net: str, way: str) -> None:
    _bounds(types, net, way)


def _untouched(self: Any, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return (value,)


def _bias_everywhere(self: Linear) -> Tensor | None:
    return _Ranks.types.give(torch.ones(self.weight.shape[0], dtype=torch.float64), spmd.R)


FAULTS = {
    "no sum of coefficients": ("crown", Enter, "transpose", _untouched),
    "no sum of values": ("fixed", Exit, "apply", lambda self, *inputs: inputs[0]),
    "no sum of the constants": ("crown", Spread, "sums", lambda self, node: False),
    "bias on all ranks": ("fixed", Linear, "bias_values", _bias_everywhere),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_checker_sees_a_fault(types: _Types, fault: str) -> None:
    way, owner, name, wrong = FAULTS[fault]
    # our own check of the graph would be first
    with patch.object(owner, name, wrong), patch.object(placements, "_has_constant", lambda op: False):
        with pytest.raises((spmd.SpmdTypeError, AssertionError), match="Partial|bounds are"):
            _bounds(types, "mlp3", way)
