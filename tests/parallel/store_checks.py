"""What a rank checks about stores; each check raises AssertionError. All ranks run all checks in the same order."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what counts live bytes imports it: once, before the ranks are forked
from torch import Tensor, nn

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm, load_onnx
from auto_LiRPA.errors import ModelError, UserError
from auto_LiRPA.graph.compact import compact, hidden_layers
from auto_LiRPA.graph.onnx_file import load_proto
from auto_LiRPA.graph.onnx_reader import read_model
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.placed import PlacedAffine
from auto_LiRPA.parallel.block_buffers import FetchedWeight
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.host_store import HostStore
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import HOST_ALIGNMENT, MIB, LocalStore, LocalWeight, ParameterStore
from auto_LiRPA.parallel.whole import whole
from auto_LiRPA.values import Window
from benchmarks.live_bytes import LiveBytes
from tests.nets import Builder, dense_layers

BLOCK_MIB = 1e-6  # eight rows a block: the least that there is
SHAPES = [(27, 13), (64, 5), (9, 1), (1, 7), (40, 3, 3, 3), (17, 2, 5), (33, 50)]


@dataclass(frozen=True)
class Stores:
    """The context of this process and one store of every kind."""

    context: DistributedContext
    sharded: ParameterStore
    host: ParameterStore
    local: ParameterStore


def run(case: dict[str, Any]) -> dict[str, str]:
    """Name of each check -> what went wrong, nothing if nothing did."""
    settings = ParallelSettings(mode="fsdp", block_mib=BLOCK_MIB, threads=1, timeout_s=20)
    context = DistributedContext.from_env(settings)
    context.buffers.debug = True
    found = {}
    for name, check in CHECKS.items():
        context.counters.live_blocks_max = 0
        offload = DistributedContext.single("cpu", ParallelSettings(mode="offload", block_mib=BLOCK_MIB))
        offload.buffers.debug = True
        host = HostStore(BLOCK_MIB, offload.buffers, offload.device, offload.counters, group=context.world)
        stores = Stores(context, context.make_store(), host, LocalStore(BLOCK_MIB))
        try:
            check(stores, case)
            found[name] = ""
        except AssertionError:
            found[name] = traceback.format_exc()
    context.close()
    return found


def numbers(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    gen = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=gen, dtype=torch.float64).to(dtype)


# -- blocks ----------------------------------------------------------------------------------------------------------
def blocks_are_those_of_the_local_store(stores: Stores, case: dict[str, Any]) -> None:
    for dtype in (torch.float32, torch.float64):
        for shape in SHAPES:
            tensor = numbers(shape, dtype=dtype)
            for store in (stores.sharded, stores.host):
                pairs = list(zip(store.place(tensor).blocks(), stores.local.place(tensor).blocks(), strict=True))
                assert len(pairs) == -(-shape[0] // 8)
            for store in (stores.sharded, stores.host):
                weight, wanted = store.place(tensor), stores.local.place(tensor)
                assert isinstance(weight, FetchedWeight) and not weight.capturable and wanted.capturable
                assert (weight.shape, weight.dtype, weight.numel) == (shape, dtype, tensor.numel())
                for ours, other in zip(weight.blocks(), wanted.blocks(), strict=True):
                    assert (ours.start, ours.stop) == (other.start, other.stop)
                    assert torch.equal(ours.data, other.data) and ours.data.stride() == other.data.stride()
                    assert ours.data.data_ptr() % HOST_ALIGNMENT == other.data.data_ptr() % HOST_ALIGNMENT == 0
                assert torch.equal(whole(weight), tensor) and torch.equal(whole(wanted, torch.float64), tensor.double())


def transposed_parameters_have_the_same_blocks(stores: Stores, case: dict[str, Any]) -> None:
    """A weight that its owner keeps transposed, or at an odd address, is cut like any other."""
    base = numbers((13, 29))
    for tensor in (base.t(), numbers((30, 13)).reshape(-1)[13:].reshape(29, 13)):
        wanted = tensor.clone(memory_format=torch.contiguous_format)
        for store in (stores.local, stores.sharded, stores.host):
            for ours, other in zip(store.place(tensor).blocks(), stores.local.place(wanted).blocks(), strict=True):
                assert torch.equal(ours.data, other.data) and ours.data.stride() == other.data.stride()
                assert ours.data.is_contiguous() and ours.data.data_ptr() % HOST_ALIGNMENT == 0


def each_rank_keeps_its_share(stores: Stores, case: dict[str, Any]) -> None:
    """All storages behind the handles, each once: 1/P and one block, also after all blocks were gathered."""
    tensors = [numbers(shape) for shape in SHAPES]
    weights = [stores.sharded.place(tensor) for tensor in tensors]
    total = sum(t.numel() * 4 for t in tensors)
    largest = max(8 * math.prod(shape[1:]) * 4 for shape in SHAPES)
    for _ in range(2):
        kept = {}
        for weight in weights:
            assert isinstance(weight, FetchedWeight)
            for part in weight._parts:
                storage = part.shard.untyped_storage()  # type: ignore[attr-defined]
                kept[storage.data_ptr()] = storage.nbytes()
        assert sum(kept.values()) <= total / stores.context.world_size + largest, (sum(kept.values()), total)
        assert stores.sharded.weight_bytes() == sum(kept.values())
        for weight in weights:
            whole(weight)
    # nothing of the tensors themselves is kept
    before = tensors[0].clone()
    tensors[0].fill_(torch.nan)
    assert torch.equal(whole(weights[0]), before)


def two_blocks_are_alive_at_most(stores: Stores, case: dict[str, Any]) -> None:
    first, second = (stores.sharded.place(numbers(shape)) for shape in ((64, 5), (33, 50)))
    for _ in range(3):
        whole(first)
        whole(second)
    for a, b in zip(first.blocks(), second.blocks(), strict=False):
        assert a.data.isfinite().all() and b.data.isfinite().all()
    slots = stores.context.buffers._slots
    assert stores.context.counters.live_blocks_max == 2 == len(slots)
    assert not any(slot.used or slot.holds is not None for slot in slots)


# -- iterators -------------------------------------------------------------------------------------------------------
def two_weights_may_be_read_at_once(stores: Stores, case: dict[str, Any]) -> None:
    a, b = numbers((64, 5)), numbers((27, 13))
    first, second = stores.sharded.place(a), stores.sharded.place(b)
    for outer in first.blocks():
        for inner in second.blocks():
            assert torch.equal(inner.data, b[inner.start : inner.stop])
            assert torch.equal(outer.data, a[outer.start : outer.stop])
    once, again = first.blocks(), first.blocks()
    for start in range(0, 64, 8):
        for blocks in (once, again):
            assert torch.equal(next(blocks).data, a[start : start + 8])


def a_third_block_is_refused(stores: Stores, case: dict[str, Any]) -> None:
    weight = stores.sharded.place(numbers((64, 5)))
    iterators = [weight.blocks() for _ in range(3)]
    next(iterators[0])
    next(iterators[1])
    try:
        next(iterators[2])
    except RuntimeError as error:
        assert "third block" in str(error)
    else:
        raise AssertionError("three blocks were alive")


def abandoned_iterators_leave_nothing_behind(stores: Stores, case: dict[str, Any]) -> None:
    a = numbers((64, 5))
    weight = stores.sharded.place(a)
    for stop_at in (1, 2, 5, 8):
        for count, _ in enumerate(weight.blocks(), 1):
            if count == stop_at:
                break
        assert torch.equal(whole(weight), a)
    held = weight.blocks()
    next(held)  # never given up, but it holds one block only
    assert torch.equal(whole(weight), a)
    del held

    def raising() -> None:
        for _ in weight.blocks():
            raise ValueError

    for _ in range(3):
        try:
            raising()
        except ValueError:
            pass
        assert torch.equal(whole(weight), a)


def stale_blocks_show(stores: Stores, case: dict[str, Any]) -> None:
    """A block that is used after the next one was asked for is no number any more."""
    for store in (stores.sharded, stores.host):
        blocks = list(store.place(numbers((64, 5))).blocks())
        assert all(block.data.isnan().all() for block in blocks)


# -- operators -------------------------------------------------------------------------------------------------------
def _operators(store: ParameterStore) -> Iterator[tuple[LinearOperator, tuple[int, ...]]]:
    yield Linear(store.place(numbers((27, 13))), numbers((27,))), (13,)
    yield Linear(store.place(numbers((64, 50))), None), (50,)
    for groups, stride, padding in ((1, 1, 1), (2, 2, 0), (6, 1, 2)):
        weight = store.place(numbers((18, 6 // groups, 3, 3)))
        yield Conv(weight, numbers((18,)), (stride,) * 2, (padding,) * 2, (1, 1), groups, (6, 9, 8)), (6, 9, 8)
    yield Conv(store.place(numbers((17, 2, 3))), None, (2,), (1,), (1,), 1, (2, 11)), (2, 11)


def operators_agree_bit_for_bit(stores: Stores, case: dict[str, Any]) -> None:
    """Values, absolute values, transposes, rows and windows; then the gradients of them by input and coefficients."""
    rules: list[Callable[..., Tensor]] = [
        lambda op, x, c: op.forward(x),
        lambda op, x, c: op.apply_abs(x),
        lambda op, x, c: op.transpose(c)[0],
        lambda op, x, c: _window(op, c),
        lambda op, x, c: op.rows(torch.tensor([1, 9, 20]), [1, 9, 20]) if isinstance(op, Linear) else x,
    ]
    for store in (stores.sharded, stores.host):
        pairs = zip(_operators(store), _operators(stores.local), strict=True)
        for (ours, shape), (local, _) in pairs:
            x = numbers((3, *shape), 1).requires_grad_()
            c = torch.randn_like(local.apply(x), generator=torch.Generator().manual_seed(4)).requires_grad_()
            for rule in rules:
                a, b = rule(ours, x, c), rule(local, x, c)
                assert torch.equal(a, b), (type(ours).__name__, rules.index(rule))
                if b.requires_grad and not b.is_leaf:
                    weight = numbers(tuple(b.shape), 2)
                    got = torch.autograd.grad((a * a * weight).sum(), (x, c), allow_unused=True)
                    wanted = torch.autograd.grad((b * b * weight).sum(), (x, c), allow_unused=True)
                    for one, other in zip(got, wanted, strict=True):
                        assert (one is None) == (other is None)
                        assert one is None or other is None or torch.equal(one, other)


def large_constants_lie_where_weights_lie(stores: Stores, case: dict[str, Any]) -> None:
    """Read from a file: a factor and a summand of 20 x 8 numbers; bounds are those of the local store, bit for bit."""
    path, graphs = Path(case["constants"]), []
    for store in (stores.sharded, stores.host, stores.local):
        graphs.append(read_model(load_proto(path), {}, store, place=str(path), folder=path.parent).graph)
    x = numbers((2, 20, 8))
    given = BoundedTensor(x, PerturbationLpNorm(eps=0.1))
    found = []
    for graph in graphs:
        placed = [node.op for node in graph.nodes if isinstance(node.op, PlacedAffine)]
        assert [op.scale is None for op in placed] == [False, True]
        held = nn.Module()
        held.graph = graph  # type: ignore[assignment]
        bounded = BoundedModule(held, x, parallel=DistributedContext.single("cpu", ParallelSettings()))
        found.append([bounded.compute_bounds(x=(given,), method=m) for m in ("IBP", "CROWN", "forward")])
        assert torch.equal(evaluate(graph, x), evaluate(graphs[-1], x))
    for pairs in zip(*found, strict=True):
        for ours in pairs[:-1]:
            _same(ours, pairs[-1])
    sharded = next(node.op for node in graphs[0].nodes if isinstance(node.op, PlacedAffine))
    assert isinstance(sharded.scale, FetchedWeight)
    plain = x
    for op in (node.op for node in graphs[2].nodes if isinstance(node.op, PlacedAffine)):
        scale = torch.ones(()) if op.scale is None else whole(op.scale)
        plain = plain * scale + (torch.zeros(()) if op.shift is None else whole(op.shift))
    last = graphs[2].nodes[graphs[2].output].op
    assert isinstance(last, Linear)
    torch.testing.assert_close(evaluate(graphs[2], x), plain.relu().flatten(1) @ whole(last.weight).T)


def _window(op: LinearOperator, coef: Tensor) -> Tensor:
    if not isinstance(op, Conv) or len(op.stride) != 2:
        return coef
    window = Window((1, 0), (3, 2))
    found = op.transpose_window(window.crop(coef), window)
    return coef if found is None else found[0][0]


def autograd_saves_no_block(stores: Stores, case: dict[str, Any]) -> None:
    """What is saved for the backward pass is a handle: no tensor as large as a block, and none in the buffers."""
    shapes = ((64, 50), (40, 64))
    weights = [stores.sharded.place(numbers(shape, dtype=torch.float64)) for shape in shapes]
    saved: list[Tensor] = []
    x = numbers((2, 50), dtype=torch.float64).requires_grad_()

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = Linear(weights[1]).apply(Linear(weights[0]).apply(x).relu())
        back = Linear(weights[0]).transpose(Linear(weights[1]).transpose(y)[0])[0].square().sum()
    assert saved and max(tensor.numel() for tensor in saved) < 8 * 50
    (gradient,) = torch.autograd.grad(back, x, create_graph=True)
    dense = [whole(weight) for weight in weights]
    z = (x @ dense[0].T).relu() @ dense[1].T
    (wanted,) = torch.autograd.grad((z @ dense[1] @ dense[0]).square().sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, wanted)
    second = torch.autograd.grad(gradient.square().sum(), x)[0]
    torch.testing.assert_close(second, torch.autograd.grad(wanted.square().sum(), x)[0])


# -- networks --------------------------------------------------------------------------------------------------------
def networks_are_read_part_by_part(stores: Stores, case: dict[str, Any]) -> None:
    """While a file is read, what is alive is 1/P of the weights and less than one of them."""
    path, layers = Path(case["onnx"]), case["layers"]
    one, total = layers[0][0].numel() * 4, sum(weight.numel() * 4 for weight, _ in layers)
    context, proto = stores.context, load_proto(path)
    with LiveBytes() as meter:
        store = context.make_store()
        read = read_model(proto, {}, store, place=str(path), folder=path.parent)
    assert store.weight_bytes() <= total / context.world_size + one / 8
    assert meter.peak <= total / context.world_size + one, (meter.peak, total, one)
    placed = [n.op.weight for n in read.graph.nodes if isinstance(n.op, Linear)]
    assert len(placed) == len(layers)
    for weight, (wanted, _) in zip(placed, layers, strict=True):
        assert isinstance(weight, FetchedWeight) and torch.equal(whole(weight), wanted)


def weights_that_are_no_numbers_end_it_for_all(stores: Stores, case: dict[str, Any]) -> None:
    """The NaN lies in one rank's part alone."""
    path = Path(case["nan"])
    try:
        read_model(load_proto(path), {}, stores.context.make_store(), place=str(path), folder=path.parent)
    except ModelError as error:
        lines = stores.context.world.objects(str(error))
        assert "NaN" in lines[0] and len(set(lines)) == 1
    else:
        raise AssertionError("a network with a NaN was read")


def modules_are_copied_and_may_give_up_their_memory(stores: Stores, case: dict[str, Any]) -> None:
    net = load_onnx(case["onnx"], trainable=True)
    x = numbers((2, net.graph.input_shape[0]), 3)
    given = BoundedTensor(x, PerturbationLpNorm(eps=0.1))
    single = BoundedModule(net, x, parallel=ParallelSettings(block_mib=BLOCK_MIB))
    ours = BoundedModule(net, x, parallel=stores.context)
    assert all(isinstance(weight, FetchedWeight) for weight in ours._graph().weights)
    for method in ("IBP", "CROWN"):
        _same(ours.compute_bounds(x=(given,), method=method), single.compute_bounds(x=(given,), method=method))
    ours.train()
    try:
        ours.compute_bounds(x=(given,), method="IBP")
    except UserError as error:
        assert "parallel.mode" in str(error) and "parameter w0" in str(error)
    else:
        raise AssertionError("training was not refused")
    ours.eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)  # every change is seen, though it is no change of the store's own copy
    wanted = single.compute_bounds(x=(given,), method="CROWN")
    _same(ours.compute_bounds(x=(given,), method="CROWN"), wanted)
    with torch.no_grad():
        next(p for p in net.parameters() if p.dim() == 2).data[3, 5] += 0.25  # of which torch counts nothing
    wanted = single.compute_bounds(x=(given,), method="CROWN")
    _same(ours.compute_bounds(x=(given,), method="CROWN"), wanted)
    ours._shared.give_up()  # type: ignore[attr-defined]
    assert sum(p.numel() for p in net.parameters()) == sum(len(bias) for _, bias in case["layers"])
    _same(ours.compute_bounds(x=(given,), method="CROWN"), wanted)


def _same(ours: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


def compacted_layers_go_to_the_same_kind_of_store(stores: Stores, case: dict[str, Any]) -> None:
    graphs = []
    for store in (stores.sharded, stores.local):
        build = Builder((12,))
        build.store = store  # type: ignore[assignment]
        at = 0
        for layer in dense_layers([12, 26, 40], 3, torch.float32):
            at = build.relu(build.dense(layer, at))
        build.dense(dense_layers([40, 17], 4, torch.float32)[0], at)
        graph = build.graph()
        kept = {source: torch.arange(graph.nodes[source].size - 1, 1, -1) for source in hidden_layers(graph)}
        graphs.append(compact(graph, kept, store))
    ours, wanted = ([w for w in graph.weights] for graph in graphs)
    assert len(ours) == 3
    for one, other in zip(ours, wanted, strict=True):
        assert isinstance(one, FetchedWeight) and isinstance(other, LocalWeight)
        assert torch.equal(whole(one), whole(other))


def a_pass_needs_its_share_two_blocks_and_some_tiles(stores: Stores, case: dict[str, Any]) -> None:
    """Everything that is alive while a network is placed and bounded, the weights' shares included."""
    hidden, depth, tile, block = 128, 3, 16, 0.01
    settings = ParallelSettings(mode="fsdp", rows="replicate", tile_rows=tile, block_mib=block)
    context = DistributedContext.from_env(settings)
    layers = dense_layers([64] + [hidden] * depth + [10], 5, torch.float32)
    total = sum(layer.weight.numel() * 4 for layer in layers)
    x = torch.full((1, 64), 0.5)
    build = Builder((64,))
    with LiveBytes() as meter, torch.no_grad():
        build.store = context.make_store()  # type: ignore[assignment]
        at = 0
        for layer in layers[:-1]:
            at = build.relu(build.dense(layer, at))
        build.dense(layers[-1], at)
        held = nn.Module()
        held.graph = build.graph()  # type: ignore[assignment]
        bounded = BoundedModule(held, x, parallel=context)
        bounded.compute_bounds(x=(BoundedTensor(x, PerturbationLpNorm(eps=0.02)),), method="CROWN")
    tiles = 3 * 2 * tile * hidden * 4
    vectors = 12 * 4 * (depth * hidden + 64)
    blocks = 2 * (2 * block * MIB + 16 * context.world_size)
    allowed = total / context.world_size + blocks + tiles + vectors
    assert meter.peak <= allowed, (meter.peak, allowed, total)
    assert context.counters.live_blocks_max == 2


CHECKS: dict[str, Callable[[Stores, dict[str, Any]], None]] = {
    check.__name__: check
    for check in (
        blocks_are_those_of_the_local_store,
        transposed_parameters_have_the_same_blocks,
        each_rank_keeps_its_share,
        two_blocks_are_alive_at_most,
        two_weights_may_be_read_at_once,
        a_third_block_is_refused,
        abandoned_iterators_leave_nothing_behind,
        stale_blocks_show,
        operators_agree_bit_for_bit,
        large_constants_lie_where_weights_lie,
        autograd_saves_no_block,
        networks_are_read_part_by_part,
        weights_that_are_no_numbers_end_it_for_all,
        modules_are_copied_and_may_give_up_their_memory,
        compacted_layers_go_to_the_same_kind_of_store,
        a_pass_needs_its_share_two_blocks_and_some_tiles,
    )
}
