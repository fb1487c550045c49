"""Tensor parallelism on a rank: every method on small networks, against the same method on the whole network."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm, load_onnx
from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.errors import ContractError, UserError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.placements import Spread
from auto_LiRPA.graph.reassembly import whole_graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.graph.tensor_parallel import tensor_parallel
from auto_LiRPA.operators import parallel_maps
from auto_LiRPA.operators.arithmetic import Add, Affine
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.pooling import AveragePool, MaxPool
from auto_LiRPA.operators.shape import Reshape
from auto_LiRPA.operators.smooth import Sigmoid
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.groups import Group
from auto_LiRPA.parallel.numerics import full_precision
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.values import Box, Interval, LpBall
from complete_verifier.bab.search import search
from complete_verifier.bab.settings import BabSettings
from complete_verifier.incomplete.settings import IncompleteSettings
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.problem import Clauses, Clock, Problem
from tests.nets import Builder, dense_layers

Way = Literal["ibp", "crown-ibp", "crown", "forward", "fixed", "stream", "keep"]
METHODS = {
    "ibp": Method.IBP,
    "crown-ibp": Method.CROWN_IBP,
    "crown": Method.CROWN,
    "forward": Method.FORWARD,
    "fixed": Method.ALPHA_CROWN,
    "stream": Method.ALPHA_CROWN,
    "keep": Method.ALPHA_CROWN,
}
TILE_ROWS = 7
BAB = BabSettings(
    batch_size=8,
    min_batch_ratio=1.0,
    iterations=4,
    lr_alpha=0.1,
    lr_beta=0.1,
    synchronous=True,
    auto_enlarge=False,
    pruning_in_iteration=False,
    half_variables=False,
)


class Layers(Builder):
    """Random layers one after the other."""

    def __init__(self, input_shape: tuple[int, ...], dtype: torch.dtype, seed: int = 5) -> None:
        super().__init__(input_shape)
        self.dtype, self.seed = dtype, seed

    def linear(self, source: int, n_out: int) -> int:
        self.seed += 1
        return self.dense(dense_layers([self.nodes[source].shape[-1], n_out], self.seed, self.dtype)[0], source)

    def tokens(self, source: int, n_out: int) -> int:
        """A linear layer for every row of a matrix."""
        self.seed += 1
        shape = self.nodes[source].shape
        layer = dense_layers([shape[-1], n_out], self.seed, self.dtype)[0]
        return self.add(Linear(self.store.place(layer.weight), layer.bias), (source,), (*shape[:-1], n_out))

    def conv(self, source: int, n_out: int, stride: int = 1) -> int:
        """3 x 3 with padding 1."""
        self.seed += 1
        gen = torch.Generator().manual_seed(self.seed)
        shape = self.nodes[source].shape
        weight = torch.randn(n_out, shape[0], 3, 3, generator=gen, dtype=torch.float64) / (9 * shape[0]) ** 0.5
        bias = 0.2 * torch.randn(n_out, generator=gen, dtype=torch.float64)
        placed = self.store.place(weight.to(self.dtype))
        op = Conv(placed, bias.to(self.dtype), (stride, stride), (1, 1), (1, 1), 1, shape)
        return self.add(op, (source,), op.out_shape)

    def affine(self, source: int, shape: tuple[int, ...]) -> int:
        self.seed += 1
        gen = torch.Generator().manual_seed(self.seed)
        scale, shift = 0.5 + torch.rand(2, *shape, generator=gen, dtype=torch.float64)
        return self.add(Affine(scale.to(self.dtype), shift.to(self.dtype) - 1), (source,), self.nodes[source].shape)

    def flat(self, source: int) -> int:
        shape = self.nodes[source].shape
        size = int(torch.Size(shape).numel())
        return self.add(Reshape(shape, (size,)), (source,), (size,))


def _mlp(depth: int) -> Callable[[torch.dtype], Graph]:
    def make(dtype: torch.dtype) -> Graph:
        build = Layers((6,), dtype, depth)
        at = 0
        for _ in range(depth):
            at = build.relu(build.linear(at, 11))
        build.linear(at, 3)
        return build.graph()

    return make


def _elementwise(dtype: torch.dtype) -> Graph:
    """Affine maps and other functions between the weights; two branches that meet inside the zone; a zone in rows."""
    build = Layers((6,), dtype, 30)
    at = build.affine(build.linear(0, 11), (11,))
    at = build.add(Sigmoid(), (at,), (11,))
    both = build.add(Add(), (at, build.relu(build.linear(0, 11))), (11,))
    at = build.relu(build.linear(both, 8))
    at = build.add(Reshape((8,), (2, 4)), (at,), (2, 4))
    at = build.tokens(build.relu(build.tokens(at, 7)), 5)
    build.linear(build.flat(build.relu(at)), 3)
    return build.graph()


def _cnn(side: int) -> Callable[[torch.dtype], Graph]:
    """A pair of convolutions with pooling inside, and one that ends in a linear layer behind a flattening."""

    def make(dtype: torch.dtype) -> Graph:
        build = Layers((2, side, side), dtype, 40)
        at = build.affine(build.conv(0, 5), (5, 1, 1))
        at = build.relu(at)
        half = side // 2
        op = AveragePool((2, 2), (2, 2), ((0, 0), (0, 0)), False, True, (5, side, side), (5, half, half))
        at = build.add(op, (at,), op.out_shape)
        at = build.relu(build.conv(at, 6))
        at = build.relu(build.conv(at, 7, 2))
        size = -(-half // 2)
        pool = MaxPool(
            (2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), False, (7, size, size), (7, size - 1, size - 1)
        )
        at = build.add(pool, (at,), pool.out_shape)
        at = build.relu(build.linear(build.flat(at), 9))
        build.linear(at, 3)
        return build.graph()

    return make


def _residual(dtype: torch.dtype) -> Graph:
    """A block whose pair closes and one (a single layer in the branch) whose pair does not."""
    build = Layers((2, 4, 4), dtype, 50)
    at = build.relu(build.conv(0, 5))
    branch = build.conv(build.relu(build.conv(at, 6)), 5)
    at = build.relu(build.add(Add(), (at, branch), build.nodes[at].shape))
    at = build.relu(build.linear(build.flat(at), 8))
    at = build.relu(build.add(Add(), (at, build.relu(build.linear(at, 8))), (8,)))
    build.linear(at, 3)
    return build.graph()


NETS: dict[str, Callable[[torch.dtype], Graph]] = {
    **{f"mlp{depth}": _mlp(depth) for depth in range(2, 7)},
    "elementwise": _elementwise,
    "cnn": _cnn(4),
    "wide": _cnn(12),
    "residual": _residual,
}


@dataclass(frozen=True)
class Case:
    """Networks and methods to compare on one number of ranks."""

    nets: tuple[str, ...]
    ways: tuple[Way, ...]
    dtype: torch.dtype = torch.float32
    mode: Literal["exact", "ibp"] = "exact"
    mesh: tuple[tuple[str, int], ...] = ()
    iterations: int = 4


def settings(case: Case) -> ParallelSettings:
    return ParallelSettings(
        mode="tp",
        mesh=dict(case.mesh) or None,
        tile_rows=TILE_ROWS,
        block_mib=1e-6,
        tp_intermediate=case.mode,
        timeout_s=30,
        threads=1,
    )


def question(graph: Graph, dtype: torch.dtype, ball: bool = False) -> Box | LpBall:
    """A small region, two samples."""
    gen = torch.Generator().manual_seed(3)
    x = torch.rand(2, *graph.input_shape, generator=gen, dtype=torch.float64).to(dtype)
    eps = torch.tensor([0.1, 0.2], dtype=dtype)
    if ball:
        return LpBall(x, 2 * eps, 2.0)
    wide = eps.reshape(-1, *([1] * len(graph.input_shape)))
    return Box(x - wide, x + wide)


def rows(graph: Graph, dtype: torch.dtype) -> Tensor:
    """Specification rows ``[1, 5, n_out]``."""
    gen = torch.Generator().manual_seed(4)
    return torch.randn(1, 5, graph.nodes[graph.output].size, generator=gen, dtype=torch.float64).to(dtype)


def bound(
    graph: Graph, way: Way, case: Case, context: DistributedContext, ball: bool = False, sparse: bool = True
) -> dict[str, Tensor]:
    """Both sides of the rows, and the boxes of named nodes."""
    alpha = AlphaSettings(mode=way if way in ("fixed", "stream") else "keep", iterations=case.iterations, lr_alpha=0.2)
    # without the intersection at the end, so that nothing hides what the passes find
    chosen = BoundSettings(compare_with_ibp=False, sparse_intermediate=sparse, alpha=alpha)
    with torch.no_grad(), full_precision():
        query = Query(c=rows(graph, case.dtype))
        found = compute(graph, question(graph, case.dtype, ball), query, METHODS[way], context, chosen)
    assert found.lower is not None and found.upper is not None
    result = {"lower": found.lower.bound, "upper": found.upper.bound}
    for node_id, box in found.boxes.items():
        name = graph.nodes[node_id].name
        result[f"{name}.lower"], result[f"{name}.upper"] = box.lower, box.upper
    return result


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to 1 + |b|."""
    return float(((a - b).abs() / (1 + b.abs())).max()) if a.numel() else 0.0


def compare(case: Case) -> dict[str, Any]:
    """Per network and method: distance of every bound from the single mode's, and facts about the shares."""
    context = DistributedContext.from_env(settings(case))
    report: dict[str, Any] = {"collectives": {}, "distance": {}, "agree": {}, "spread": {}, "bytes": {}, "sound": {}}
    for name in case.nets:
        whole = NETS[name](case.dtype)
        store = context.make_store()
        mine = tensor_parallel(whole, context, store)
        report["bytes"][name] = store.weight_bytes()
        report["spread"][name] = sum(mine.spread.sharded(n.id) for n in mine.nodes) if mine.spread is not None else 0
        x = _samples(whole, case.dtype)
        report["distance"][name, "values"] = distance(evaluate(mine, x), evaluate(whole, x))
        report["distance"][name, "gradients"] = distance(_gradient(mine, x), _gradient(whole, x))
        report["distance"][name, "reassembled"] = distance(evaluate(whole_graph(mine), x), evaluate(whole, x))
        for way in case.ways:
            for ball in (False, True) if way == "crown" else (False,):
                one, here = bound(whole, way, case, context.alone(), ball), bound(mine, way, case, context, ball)
                assert one.keys() == here.keys(), (one.keys(), here.keys())
                key = (name, way + ("-ball" if ball else ""))
                report["distance"][key] = max(distance(here[k], one[k]) for k in one)
                everywhere = context.world.gather(torch.cat([here["lower"].flatten(), here["upper"].flatten()]))
                report["agree"][key] = bool((everywhere == everywhere[0]).all())
                if not ball:
                    report["sound"][key] = _sound(whole, x, here, case.dtype)
        report["collectives"][name] = {k: t.calls for k, t in context.counters.collectives.items()}
    context.close()
    return report


def _gradient(graph: Graph, x: Tensor) -> Tensor:
    """Of the sum of squared outputs by the input, as an attack takes it."""
    point = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(evaluate(graph, point).square().sum(), point)
    return found


def _small_onnx(folder: Path) -> nn.Module:
    """Three layers with a ReLU and a sigmoid between them, from a file (a torch module would need the exporter)."""
    from onnx import TensorProto, helper, numpy_helper, save

    layers = dense_layers([5, 9, 7, 4], 1)
    nodes, weights, at = [], [], "x"
    for i, layer in enumerate(layers):
        weights += [
            numpy_helper.from_array(layer.weight.numpy(), f"w{i}"),
            numpy_helper.from_array(layer.bias.numpy(), f"b{i}"),
        ]
        nodes.append(helper.make_node("Gemm", [at, f"w{i}", f"b{i}"], [f"z{i}"], transB=1))
        at = f"z{i}"
        if i < 2:
            nodes.append(helper.make_node(("Relu", "Sigmoid")[i], [at], [f"a{i}"]))
            at = f"a{i}"
    ends = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, ["N", k]) for n, k in (("x", 5), ("z2", 4))]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), folder / "small.onnx")
    return load_onnx(folder / "small.onnx").double()


def module(case: None) -> dict[Any, Any]:
    """A torch module through the public interface: bounds, new weights, boxes by name, gradients, an inner node."""
    context = DistributedContext.from_env(ParallelSettings(mode="tp", tile_rows=TILE_ROWS, timeout_s=30, threads=1))
    with tempfile.TemporaryDirectory() as folder:
        model = _small_onnx(Path(folder))
    x = BoundedTensor(torch.rand(2, 5, dtype=torch.float64), PerturbationLpNorm(norm=float("inf"), eps=0.1))
    report: dict[Any, Any] = {}
    one, here = (BoundedModule(model, x.data, parallel=p) for p in (None, context))
    for step in ("first", "after a step"):
        for method in ("IBP", "CROWN"):
            single, spread = (m.compute_bounds(x=(x,), method=method) for m in (one, here))
            report[step, method] = max(distance(a, b) for a, b in zip(spread, single, strict=True))
        boxes = one.save_intermediate(), here.save_intermediate()
        report[step, "boxes"] = max(
            distance(box[i], boxes[0][name][i]) for name, box in boxes[1].items() for i in (0, 1)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
    given = {name: box for name, box in one.save_intermediate().items() if name in here.save_intermediate()}
    inner = one.relus[0]
    for options in ({"interm_bounds": given}, {"final_node_name": inner}):
        single, spread = (m.compute_bounds(x=(x,), method="CROWN", **options) for m in (one, here))
        report[next(iter(options))] = max(distance(a, b) for a, b in zip(spread, single, strict=True))
    with_coefficients = [m.compute_bounds(x=(x,), method="CROWN", return_A=True)[2] for m in (one, here)]
    parts = [a[one.final_name][one.input_name[0]]["lA"] for a in with_coefficients]
    report["coefficients"] = distance(parts[1], parts[0])
    try:
        here.compute_bounds(x=(x,), C=torch.ones(1, 1, 4, dtype=torch.float64, requires_grad=True))
        report["gradients"] = "given"
    except UserError as error:
        report["gradients"] = str(error)
    context.close()
    return report


def _samples(graph: Graph, dtype: torch.dtype) -> Tensor:
    """Points of both samples' boxes, ``[2 * N, *input]``: first all of the first one."""
    box = question(graph, dtype)
    assert isinstance(box, Box)
    gen = torch.Generator().manual_seed(9)
    share = torch.rand(2, 200, *graph.input_shape, generator=gen, dtype=torch.float64).to(dtype)
    return (box.lower.unsqueeze(1) + share * (box.upper - box.lower).unsqueeze(1)).flatten(0, 1)


def _sound(graph: Graph, x: Tensor, found: dict[str, Tensor], dtype: torch.dtype) -> bool:
    """Whether every sampled point obeys the bounds, within rounding."""
    values = evaluate(graph, x).flatten(1) @ rows(graph, dtype)[0].T
    values = values.unflatten(0, (2, -1))
    slack = 1e-4
    low, high = found["lower"].unsqueeze(1) - slack, found["upper"].unsqueeze(1) + slack
    return bool(((values >= low) & (values <= high)).all())


@dataclass(frozen=True)
class SearchCase:
    """A branch and bound to compare: network, radius of the box, slack of the thresholds, most rounds."""

    net: str
    radius: float
    slack: float
    rounds: int = 4


def _problem(graph: Graph, case: SearchCase, whole: Graph, context: DistributedContext) -> Problem:
    """Three clauses of one row each whose thresholds lie below the centre's outputs."""
    dtype = torch.float64
    box = question(whole, dtype)
    x = box.center()[:1]
    y = evaluate(whole, x).flatten()
    c = rows(whole, dtype)[0, :3].unsqueeze(1)
    rhs = (c[:, 0] @ y - case.slack).unsqueeze(1)
    clauses = Clauses(c, rhs, torch.zeros(3, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.bool))
    region = Box(x - case.radius, x + case.radius)
    alpha = BoundSettings(alpha=AlphaSettings(iterations=4, lr_alpha=0.25))
    return Problem(graph, region, clauses, context, alpha, Clock(time.monotonic(), 1e6))


def searched(case: tuple[tuple[SearchCase, ...], tuple[tuple[str, int], ...]]) -> dict[str, Any]:
    """Per search what came out of it, single and here (on a mesh, if one is given)."""
    searches, mesh = case
    context = DistributedContext.from_env(settings(Case((), (), mesh=mesh)))
    report: dict[str, Any] = {}
    for one in searches:
        whole = NETS[one.net](torch.float64)
        found = []
        for graph, where in ((whole, context.alone()), (tensor_parallel(whole, context), context)):
            problem = _problem(graph, one, whole, where)
            start = run_incomplete(problem, IncompleteSettings())
            result = search(problem, start, replace(BAB, max_iterations=one.rounds))
            found.append((result.closed, result.stopped_by, result.domains_visited, result.rounds, result.worst_bound))
        report[one.net] = found
    context.close()
    return report


# -- planted faults ---------------------------------------------------------------------------------------------------
@contextmanager
def planted(fault: str) -> Iterator[None]:
    """Run with one mistake in the arithmetic of zones, the same on every rank (so that nothing hangs)."""
    total, broadcast, part, whole_of = Group.total, Group.broadcast, Spread.part, Spread.whole_of
    enter = parallel_maps.Enter.transpose

    def dropped_reduce(self: Any, coef: Tensor) -> tuple[Tensor, ...]:
        return (coef,)

    def doubled_reduce(self: Any, coef: Tensor) -> tuple[Tensor, ...]:
        return enter(self, total(self.ranks, coef))

    def dropped_sum(self: Any, *inputs: Tensor) -> Tensor:
        return inputs[0]

    def constants_stay(self: Any, tensor: Tensor) -> Tensor:
        return tensor if tensor.ndim == 2 and tensor.shape[0] <= 2 else total(self, tensor)

    def constants_everywhere(self: Spread, node: int) -> bool:
        return False

    def bias_everywhere(self: Any) -> Tensor | None:
        return None if self.bias is None else self.ranks.size * self.bias.reshape(-1, *([1] * self.spatial))

    def bias_dot_everywhere(self: Any, coef: Tensor) -> Tensor | None:
        return None if self.bias is None else self.ranks.size * coef.flatten(1) @ self.bias

    def wrong_owner(self: Group, tensor: Tensor, source: int) -> Tensor:
        return broadcast(self, tensor, (source + 1) % self.size)

    def own_part_of_rank_0(self: Spread, node: int, value: Tensor, leading: int = 1) -> Tensor:
        if not self.sharded(node):
            return part(self, node, value, leading)
        first, last = self.range(node)
        return value.narrow(leading + self.places[node].axis, 0, last - first)  # type: ignore[union-attr]

    def backwards(self: Spread, node: int, box: Interval) -> Interval:
        found = whole_of(self, node, box)
        axis = 1 + self.places[node].axis if self.sharded(node) else 1  # type: ignore[union-attr]
        return Interval(found.lower.flip(axis), found.upper.flip(axis))

    faults: dict[str, list[tuple[Any, str, Any]]] = {
        "none": [],
        "dropped reduce of coefficients": [(parallel_maps.Enter, "transpose", dropped_reduce)],
        "doubled reduce of coefficients": [(parallel_maps.Enter, "transpose", doubled_reduce)],
        "dropped sum of values": [(parallel_maps.Exit, "apply", dropped_sum)],
        "constants not reduced": [(Group, "total", constants_stay)],
        "constants of own neurons as if whole": [(Spread, "sums", constants_everywhere)],
        "bias on all ranks": [
            (parallel_maps.Exit, "bias_values", bias_everywhere),
            (parallel_maps.Exit, "bias_dot", bias_dot_everywhere),
        ],
        "rows from the wrong rank": [(Group, "broadcast", wrong_owner)],
        "boxes of another rank's neurons": [(Spread, "part", own_part_of_rank_0)],
        "gathered in the wrong order": [(Spread, "whole_of", backwards)],
    }
    with ExitStack() as stack:
        for owner, name, value in faults[fault]:
            stack.enter_context(patch.object(owner, name, value))
        yield


FAULTS = (
    "none",
    "dropped reduce of coefficients",
    "doubled reduce of coefficients",
    "dropped sum of values",
    "constants not reduced",
    "constants of own neurons as if whole",
    "bias on all ranks",
    "rows from the wrong rank",
    "boxes of another rank's neurons",
    "gathered in the wrong order",
)


ALIKE = ("none", "gathered in the wrong order", "bias on all ranks")


def mutated(case: None) -> dict[str, float]:
    """Per planted fault, the largest distance that it makes on a deep MLP over some methods."""
    case_of = Case(("mlp4",), (), torch.float64)
    context = DistributedContext.from_env(settings(case_of))
    whole = NETS["mlp4"](torch.float64)
    # every neuron is a row, and the same wrong numbers on all ranks where the method decides by them: no fault may hang
    ways: tuple[Way, ...] = ("ibp", "crown", "keep")
    one = {way: bound(whole, way, case_of, context.alone(), sparse=False) for way in ways}
    report = {}
    for fault in FAULTS:
        with planted(fault):
            mine = tensor_parallel(whole, context)
            x = _samples(whole, torch.float64)
            far = distance(evaluate(mine, x), evaluate(whole, x))
            for way in ways if fault in ALIKE else ways[:2]:
                try:
                    here = bound(mine, way, case_of, context, sparse=False)
                except ContractError:  # on all ranks at once: they have found that they differ
                    far = math.inf
                    continue
                far = max(far, *(distance(here[k], one[way][k]) for k in one[way]))
        report[fault] = context.world.largest(far)
    context.close()
    return report


def onnx(case: tuple[str, float]) -> dict[str, float]:
    """Distance of the output bounds of an ONNX network from the single mode's: exact, and with `ibp` inside zones."""
    path, eps = case
    report = {}
    for mode in ("exact", "ibp"):
        context = DistributedContext.from_env(
            ParallelSettings(mode="tp", tp_intermediate=mode, timeout_s=60, threads=1)
        )
        graph = load_onnx(path).graph
        gen = torch.Generator().manual_seed(0)
        x = torch.rand(1, *graph.input_shape, generator=gen)
        region = Box((x - eps).clamp(0, 1), (x + eps).clamp(0, 1))
        chosen = BoundSettings(compare_with_ibp=False)
        with torch.no_grad(), full_precision():
            one = compute(graph, region, Query(), Method.CROWN, context.alone(), chosen)
            mine = compute(tensor_parallel(graph, context), region, Query(), Method.CROWN, context, chosen)
        assert one.lower and one.upper and mine.lower and mine.upper
        gap = (one.lower.bound - mine.lower.bound).abs().max(), (one.upper.bound - mine.upper.bound).abs().max()
        report[mode] = float(max(gap))
        report[f"{mode} relative"] = max(
            distance(mine.lower.bound, one.lower.bound), distance(mine.upper.bound, one.upper.bound)
        )
        report[f"{mode} sound"] = float(
            (mine.lower.bound <= one.lower.bound + 1e-3).all() and (mine.upper.bound >= one.upper.bound - 1e-3).all()
        )
    context.close()
    return report
