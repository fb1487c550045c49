"""Tensor parallelism on a rank: every method on small networks, against the same method on the whole network."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm, load_onnx
from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.errors import UserError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.reassembly import whole_graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.graph.tensor_parallel import tensor_parallel
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.numerics import full_precision
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.values import Box
from tests.nets import dense_layers
from tests.parallel.tp_networks import NETS, question, rows

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
        x = samples(whole, case.dtype)
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


def samples(graph: Graph, dtype: torch.dtype) -> Tensor:
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
