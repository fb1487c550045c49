"""Random small problems for the search: the network as a graph, as plain matrices for the MILP, and its clauses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from auto_LiRPA.bounds.alpha import alpha_crown
from auto_LiRPA.bounds.domains.ascent import AscentSettings
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.shape import Reshape
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Box
from complete_verifier.bab.bounding import Bounder, make_bounder
from complete_verifier.bab.domains import Domains
from complete_verifier.bab.general_bounding import GeneralBounder
from complete_verifier.bab.roots import root_domains
from complete_verifier.bab.search import search
from complete_verifier.bab.settings import BabResult, BabSettings, Tiling
from complete_verifier.branching.layout import Layout, make_layout
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.incomplete.settings import IncompleteSettings
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.problem import Clauses, Clock, Problem
from tests.milp import worst_violation
from tests.nets import Builder, dense_layers, mlp, residual

KINDS = ("mlp", "cnn", "residual")
BOUNDS = BoundSettings(alpha=AlphaSettings(iterations=5, lr_alpha=0.25))


@dataclass(frozen=True)
class Network:
    """One network twice: for the project, and as ``(weight, bias)`` pairs in float64 for the MILP.

    ``skip``: square hidden layers add their input, as `tests.milp` has it.
    """

    graph: Graph
    plain: list[tuple[np.ndarray, np.ndarray]]
    skip: bool


def network(kind: str, gen: np.random.Generator, dtype: torch.dtype, neurons: int = 30) -> Network:
    """A random network of the kind with at most so many ReLU neurons and three outputs."""
    seed = int(gen.integers(2**31))
    if kind == "cnn":
        return _cnn(gen, seed, dtype, neurons)
    # a residual block has two ReLU layers, the first layer one; at least two neurons a layer
    depth = int(gen.integers(2, min(4, neurons // 4 + 1)) if kind == "residual" else gen.integers(1, 4))
    width = int(gen.integers(2, min(10, neurons // (2 * depth - 1 if kind == "residual" else depth)) + 1))
    layers = dense_layers([int(gen.integers(2, 5)), *([width] * depth), 3], seed, dtype)
    plain = [(layer.weight.double().numpy(), layer.bias.double().numpy()) for layer in layers]
    return Network((mlp if kind == "mlp" else residual)(layers), plain, kind == "residual")


def _cnn(gen: np.random.Generator, seed: int, dtype: torch.dtype, neurons: int) -> Network:
    """One image channel, one convolution of random geometry, one hidden dense layer."""
    torch.manual_seed(seed)
    size, kernel = int(gen.integers(3, 5)), int(gen.integers(2, 4))
    stride, padding = int(gen.integers(1, 3)), int(gen.integers(0, 2))
    side = (size + 2 * padding - kernel) // stride + 1
    channels = max(1, min(2, neurons // (2 * side * side)))
    conv = nn.Conv2d(1, channels, kernel, stride, padding).to(dtype)
    build = Builder((1, size, size))
    op = Conv(
        build.store.place(conv.weight.detach()),
        None if conv.bias is None else conv.bias.detach(),
        (stride, stride), (padding, padding), (1, 1), 1, (1, size, size),
    )  # fmt: skip
    at = build.relu(build.add(op, (0,), op.out_shape))
    flat = channels * side * side
    at = build.add(Reshape(op.out_shape, (flat,)), (at,), (flat,))
    layers = dense_layers([flat, max(2, min(6, neurons - flat)), 3], seed, dtype)
    at = build.relu(build.dense(layers[0], at))
    build.dense(layers[1], at)
    # the convolution's matrix, by torch's own forward on every unit image
    with torch.no_grad():
        origin = conv(torch.zeros(1, 1, size, size, dtype=dtype)).flatten()
        units = conv(torch.eye(size * size, dtype=dtype).reshape(-1, 1, size, size)).flatten(1)
    first = ((units - origin).T.double().numpy(), origin.double().numpy())
    rest = [(layer.weight.double().numpy(), layer.bias.double().numpy()) for layer in layers]
    return Network(build.graph(), [first, *rest], False)


@dataclass(frozen=True)
class Case:
    """A problem, and the exact worst violation of each clause (negative: a counterexample exists)."""

    problem: Problem
    net: Network
    truth: list[float]

    @property
    def holds(self) -> bool:
        return min(self.truth) > 0


def clauses(
    rows: Sequence[tuple[np.ndarray, np.ndarray]],
    dtype: torch.dtype,
    strict: Tensor | None = None,
    region: Sequence[int] | None = None,
) -> Clauses:
    """Clauses from ``(c, rhs)`` pairs of any height, padded as the driver pads them; over one region if not said."""
    height = max(len(rhs) for _, rhs in rows)
    c = torch.zeros(len(rows), height, rows[0][0].shape[1], dtype=dtype)
    rhs = torch.full((len(rows), height), torch.inf, dtype=dtype)
    for k, (matrix, limit) in enumerate(rows):
        c[k, : len(limit)], rhs[k, : len(limit)] = torch.from_numpy(matrix).to(dtype), torch.from_numpy(limit).to(dtype)
    attainable = torch.zeros_like(rhs, dtype=torch.bool) if strict is None else strict
    return Clauses(c, rhs, torch.tensor(region or [0] * len(rows)), attainable)


def make_problem(graph: Graph, box: Box, spec: Clauses, seconds: float = 300.0) -> Problem:
    """A problem on one thread's context, with the clock running."""
    return Problem(graph, box, spec, DistributedContext.single(), BOUNDS, Clock(time.monotonic(), seconds))


def box_around(
    gen: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype, radius: tuple[float, float] = (0.2, 1.2)
) -> Box:
    """A random box with one batch element, its ends exact in float32; now and then an input does not move."""
    size = int(np.prod(shape))
    center, reach = gen.normal(size=size), gen.uniform(*radius, size=size)
    reach[gen.uniform(size=size) < 0.1] = 0.0
    ends = ((center - reach).astype(np.float32), (center + reach).astype(np.float32))
    low, high = (torch.from_numpy(end).to(dtype).reshape(1, *shape) for end in ends)
    return Box(low, high)


def random_case(kind: str, seed: int, neurons: int = 30, regions: int = 1) -> Case:
    """Up to three clauses of up to three rows, each threshold 0.01 to 0.1 away from the exact worst violation.

    There the search has to work, and no verdict is near enough to the boundary for rounding to decide it.
    """
    gen = np.random.default_rng([seed, KINDS.index(kind)])
    dtype = torch.float64 if seed % 4 == 0 else torch.float32
    net = network(kind, gen, dtype, neurons)
    # of a wide box around 30 neurons the tree would have thousands of leaves
    share = min(1.0, 14 / sum(node.size for node in net.graph.nodes if isinstance(node.op, Relu)))
    boxes = [box_around(gen, net.graph.input_shape, dtype, (0.2 * share, 1.2 * share)) for _ in range(regions)]
    holds = gen.uniform() < 0.6
    rows, truth = [], []
    count = int(gen.integers(1, 4)) + regions - 1
    for number in range(count):
        box = boxes[number % regions]
        low, high = (side.double().flatten().numpy() for side in (box.lower, box.upper))
        height = int(gen.integers(1, 4))
        c = gen.normal(size=(height, 3)).astype(np.float32).astype(np.float64)
        rhs = 0.3 * gen.normal(size=height)
        margin = float((1 if holds else gen.choice([-1, 1])) * gen.uniform(0.01, 0.1))
        # raising all thresholds alike lowers the worst violation by as much
        rhs += worst_violation(net.plain, low, high, c, rhs, net.skip) - margin
        rows.append((c, rhs))
        truth.append(margin)
    whole = Box(torch.cat([b.lower for b in boxes]), torch.cat([b.upper for b in boxes]))
    spec = clauses(rows, dtype, region=[number % regions for number in range(count)])
    return Case(make_problem(net.graph, whole, spec), net, truth)


def incomplete(problem: Problem) -> IncompleteResult:
    """What the search starts from: for one region by the engine alone, else by the incomplete stage itself."""
    spec = problem.clauses
    if problem.region.center().shape[0] > 1:
        return run_incomplete(problem, IncompleteSettings())
    k, r, n = spec.c.shape
    with torch.no_grad():
        found = alpha_crown(
            problem.graph, problem.region, spec.c.reshape(1, k * r, n), problem.context, problem.bounds
        )
    lower = found.lower.reshape(k, r)
    slopes = {j: s[0].unflatten(0, (k, r)) for j, s in found.slopes[0].items()}
    return IncompleteResult(lower, spec.proven(lower), found.intermediate, slopes)


def decide(problem: Problem, settings: BabSettings) -> BabResult:
    """Branch and bound after alpha-CROWN; candidates of LP leaves are confirmed on the network itself."""
    spec = problem.clauses

    def confirm(x: np.ndarray) -> bool:
        y = evaluate(problem.graph, torch.as_tensor(x).unsqueeze(0).to(spec.c))[0].flatten()
        return bool(((spec.c @ y <= spec.rhs + 1e-5).all(1)).any())

    return search(problem, incomplete(problem), settings, on_candidate=confirm)


@dataclass(frozen=True)
class Setup:
    """What a search works with: bounds of the root, columns of the splittable neurons, the bounder."""

    problem: Problem
    root: IncompleteResult
    layout: Layout
    bounder: Bounder


def set_up(
    problem: Problem, iterations: int = 8, height: int = 1024, lr_beta: float = 0.2, general: bool = False
) -> Setup:
    """The parts of a search on ``problem``; ``general``: with the bounder that takes any network."""
    root = incomplete(problem)
    layout = make_layout(problem.graph, root.intermediate)
    settings = AscentSettings(iterations=iterations, lr_alpha=0.2, lr_beta=lr_beta)
    make = GeneralBounder if general else make_bounder
    return Setup(problem, root, layout, make(problem, root, layout, settings, Tiling(height, False)))


def domains(setup: Setup, clause: Tensor, sign: Tensor, gen: torch.Generator) -> Domains:
    """Domains with the given clauses ``[D]`` and signs ``[D, U]``; random multipliers and weights, CROWN's slopes."""
    spec, dtype = setup.problem.clauses, setup.problem.clauses.c.dtype
    count = len(clause)
    weight = torch.rand(count, spec.rhs.shape[1], generator=gen, dtype=torch.float64).to(dtype) + 1e-3
    weight = torch.where(torch.isfinite(spec.rhs[clause]), weight, 0.0)
    everything_open = replace(setup.root, proven=torch.zeros_like(setup.root.proven))
    roots = root_domains(setup.problem, everything_open, setup.layout, dtype)
    beta = torch.rand(sign.shape, generator=gen, dtype=torch.float64).to(dtype)
    return Domains(
        id=torch.arange(count),
        clause=clause,
        depth=(sign != 0).sum(1),
        sign=sign,
        value=torch.where(sign != 0, beta, roots.value[clause]),
        lower=torch.full((count,), -torch.inf, dtype=dtype),
        mix=weight / weight.sum(1, keepdim=True),
        box_lower=torch.zeros(count, 0, dtype=dtype),
        box_upper=torch.zeros(count, 0, dtype=dtype),
        slopes={},
    )


def column_values(setup: Setup, x: Tensor) -> Tensor:
    """Pre-activations ``[N, U]`` of all splittable neurons at inputs ``x`` ``[N, *input]``."""
    values = [x]
    for node in setup.problem.graph.nodes[1:]:
        values.append(node.op.forward(*(values[i] for i in node.inputs)))
    return torch.cat([values[layer.source].flatten(1)[:, layer.index] for layer in setup.layout.layers], 1)


def sample(box: Box, count: int, gen: torch.Generator) -> Tensor:
    """Points ``[count, *input]`` of a box with one batch element, a third of them corners."""
    share = torch.rand(count, *box.lower.shape[1:], generator=gen, dtype=torch.float64).to(box.lower)
    corner = torch.arange(count).reshape(-1, *([1] * (box.lower.ndim - 1))) % 3 == 0
    share = torch.where(corner, share.round(), share)
    return box.lower + share * (box.upper - box.lower)
