"""Tighter boxes of hidden neurons by branch and bound on each of them, all neurons of a layer side by side.

What MIP refinement does for a few neurons at a time (interface 7, `bab-refine`), done with the search's own bounding
step: each side of neuron z_j is the root of a small tree (least value of z_j, and of -z_j), which splits neurons of
earlier layers. Each round splits the worst leaves of every tree at once. The least bound over a tree's leaves bounds
z_j, whenever the rounds end; a tree whose leaves all lie above 0 shows that the neuron is stable.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.columns import Layer, Layout
from auto_LiRPA.bounds.domains.ascent import AscentSettings
from auto_LiRPA.bounds.domains.schedule import is_relu_network
from auto_LiRPA.bounds.intermediate import Intermediate
from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import NonlinearOperator
from auto_LiRPA.parallel.groups import Group
from auto_LiRPA.parallel.store import LocalStore, Weight
from auto_LiRPA.parallel.whole import whole
from auto_LiRPA.values import Interval
from complete_verifier.bab.bounding import Bounder, SecondsLeft, make_bounder, try_children
from complete_verifier.bab.domains import Domains, concatenate
from complete_verifier.bab.oom import is_out_of_memory
from complete_verifier.bab.roots import root_domains
from complete_verifier.bab.settings import Tiling
from complete_verifier.bab.shrink import LARGEST_MIB, shrunk
from complete_verifier.bab.split import split
from complete_verifier.branching.brancher import Brancher, BranchInput, make_brancher
from complete_verifier.branching.columns import make_columns
from complete_verifier.branching.layout import make_layout
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Clauses, Problem

_LOG = logging.getLogger(__name__)

OnLayer = Callable[[int, int, int, int], None]  # layer number, unstable before, unstable after, leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineSettings:
    """How long, and how. ``parents``: leaves split in a round; ``most_leaves``: a layer ends when it has so many."""

    seconds: float
    ascent: AscentSettings
    tiling: Tiling
    candidates: int = 3
    parents: int = 4096
    most_leaves: int = 400_000
    min_gain: float = 1e-3  # a layer ends when a round moves its bounds by a smaller share of their width
    seed: int = 0


def can_refine(problem: Problem) -> bool:
    """ReLU networks over one input region, whose weights a rank has or can copy."""
    plain = is_relu_network(problem.graph) and problem.graph.spread is None
    if not plain or problem.region.center().shape[0] != 1:
        return False
    weights = (getattr(node.op, "weight", None) for node in problem.graph.nodes)
    size = sum(w.numel * w.dtype.itemsize for w in weights if isinstance(w, Weight))
    return problem.context.weights.size == 1 or size <= LARGEST_MIB * 2**20


def refine_boxes(
    problem: Problem, start: IncompleteResult, settings: RefineSettings, on_layer: OnLayer | None = None
) -> IncompleteResult:
    """The same result with tighter boxes of the hidden neurons (none looser), from the first layer to the last.

    Rows and slopes are as they were. A layer's share of the time is its share of the unstable neurons that are left.
    Where memory or time runs out, the boxes found so far are the result. All ranks call this together: the neurons of a
    layer are shared out over them, and the boxes that each has found go to all before the next layer.
    """
    own, world = _by_itself(problem), problem.context.world
    boxes = dict(start.intermediate.boxes)
    layers = make_layout(problem.graph, start.intermediate).layers
    ends = time.monotonic() + settings.seconds
    for number, layer in enumerate(layers):
        if number == 0:  # above it there is nothing to split
            continue
        rest = sum(len(x.index) for x in layers[number:])
        share = world.smallest((ends - time.monotonic()) * len(layer.index) / max(1, rest))
        if share <= 0:
            break
        problem.context.at(f"refining layer {number}", patient=True)
        found = _refined_layer(own, boxes, layer, settings, time.monotonic() + share, world)
        box = Interval(world.greatest(found.box.lower), world.least(found.box.upper))
        every = world.numbers([found.visited, found.late])
        if any(late for _, late in every):
            break
        if on_layer is not None:
            visited = int(sum(count for count, _ in every))
            on_layer(number, _unstable(boxes[layer.source]), _unstable(box), visited)
        boxes[layer.source] = box
    return replace(start, intermediate=_with_boxes(problem.graph, start.intermediate, boxes))


def _by_itself(problem: Problem) -> Problem:
    """The problem as this rank works on it without any other, with whole weights."""
    context = problem.context
    if context.weights.size == 1:
        return replace(problem, context=context.within_domains())
    store = LocalStore(context.settings.block_mib)
    graph = problem.graph.mapped(lambda t: t, lambda w: store.place(whole(w)))
    return replace(problem, graph=graph, context=context.alone())


@dataclass(frozen=True, slots=True)
class _Refined:
    """A layer's box by one rank's share of its neurons; ``late``: time ended before there was anything."""

    box: Interval
    visited: int = 0
    late: bool = False


def _refined_layer(
    problem: Problem, boxes: dict[int, Interval], layer: Layer, settings: RefineSettings, ends: float, world: Group
) -> _Refined:
    """This rank's share of a layer; where its trees do not fit into memory the box stays as it was."""
    flat = boxes[layer.source].flat()
    neurons = ((flat.lower < 0) & (flat.upper > 0))[0].nonzero().squeeze(-1)[world.rank :: world.size]
    if len(neurons) == 0:
        return _Refined(boxes[layer.source])
    try:
        tree = _Trees(problem, boxes, layer, settings, neurons)
        return _Refined(tree.run(ends), tree.visited)
    except OutOfTime:
        return _Refined(boxes[layer.source], late=True)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    _LOG.warning("out of memory while refining %d neurons of a layer: they stay as they were", len(neurons))
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return _Refined(boxes[layer.source])


def _trusted(lower: Tensor) -> Tensor:
    """Bounds that count: neither a NaN nor an infinity, which comes from sums that overflow, bounds anything."""
    return torch.where(torch.isfinite(lower), lower, -torch.inf)


def _unstable(box: Interval) -> int:
    return int(((box.lower < 0) & (box.upper > 0)).sum())


def _with_boxes(graph: Graph, root: Intermediate, boxes: dict[int, Interval]) -> Intermediate:
    """Relaxations over the new boxes; slopes stay with the neurons that carried them."""
    relaxations = {}
    for node_id, old in root.relaxations.items():
        node = graph.nodes[node_id]
        assert isinstance(node.op, NonlinearOperator)
        relaxation = node.op.relax(*(boxes[i] for i in node.inputs))
        relaxation.pinned = None if old.alpha is None else old.alpha.index
        relaxations[node_id] = relaxation
    return Intermediate(boxes, relaxations, root.starts)


class _Trees:
    """The trees of unstable neurons of one layer: clauses ``z_j <= 0`` and, after them, ``-z_j <= 0``."""

    def __init__(
        self, problem: Problem, boxes: dict[int, Interval], layer: Layer, settings: RefineSettings, neurons: Tensor
    ) -> None:
        self.settings, self.layer, self.box, self.neurons = settings, layer, boxes[layer.source], neurons
        flat = self.box.flat()
        self.visited = 0
        count, size = len(self.neurons), flat.lower.shape[1]
        device, dtype = flat.lower.device, flat.lower.dtype
        c = torch.zeros(2 * count, 1, size, dtype=dtype, device=device)
        each = torch.arange(count, device=device)
        c[each, 0, self.neurons], c[each + count, 0, self.neurons] = 1.0, -1.0
        self.first = torch.cat([flat.lower[0, self.neurons], -flat.upper[0, self.neurons]])
        zeros = torch.zeros(2 * count, 1, dtype=dtype, device=device)
        clauses = Clauses(c, zeros, torch.zeros(2 * count, dtype=torch.long, device=device), zeros.bool())
        graph = replace(problem.graph, nodes=problem.graph.nodes[: layer.source + 1], output=layer.source)
        below = graph.ancestors[layer.source]
        root = Intermediate(
            {k: b for k, b in boxes.items() if k in below},
            {
                n.id: n.op.relax(*(boxes[i] for i in n.inputs))
                for n in graph.nodes
                if n.id in below and isinstance(n.op, NonlinearOperator)
            },
            (),
        )
        lower = self.first.unsqueeze(1)
        start = IncompleteResult(lower, torch.zeros_like(self.first, dtype=torch.bool), root, {})
        asked = replace(problem, graph=graph, clauses=clauses)
        stored = torch.float16 if dtype == torch.float32 else dtype
        self.roots = root_domains(asked, start, make_layout(graph, root), stored)
        asked, start = shrunk(asked, start)
        self.layout: Layout = make_layout(asked.graph, start.intermediate)
        self.bounder: Bounder = make_bounder(asked, start, self.layout, settings.ascent, settings.tiling)
        self.brancher: Brancher = make_brancher(
            "kfsb",
            make_columns(asked.graph, self.layout, dtype, device),
            candidates=settings.candidates,
            seed=settings.seed,
        )

    def run(self, ends: float) -> Interval:
        """The layer's box when the time is over or nothing gets better."""
        if self.layout.width == 0:
            return self.box

        def left() -> float:
            return ends - time.monotonic()

        began = time.monotonic()
        leaves = self.bounder.bound(self.roots, left)  # the trees' roots, with slopes of their own
        least = torch.fmax(self._least(leaves), self.first)
        next_id, took = len(leaves), time.monotonic() - began
        while len(leaves) and len(leaves) < self.settings.most_leaves and time.monotonic() + 2 * took < ends:
            began = time.monotonic()
            picked = self._worst(leaves)
            if not bool(picked.any()):
                break
            children = self._children(leaves.pick(picked.nonzero().squeeze(-1)), next_id, left)
            next_id += len(children)
            self.visited += len(children)
            leaves = concatenate(leaves.pick((~picked).nonzero().squeeze(-1)), children)
            leaves = leaves.pick((~self.bounder.proven(leaves, leaves.lower)).nonzero().squeeze(-1))
            now = torch.fmax(self._least(leaves), least)
            gain = (now - least).clamp_max(1e30).sum() / (-self.first).clamp_min(0).sum().clamp_min(1e-30)
            least, took = now, time.monotonic() - began
            if float(gain) < self.settings.min_gain / 10:
                break
        return self._box(least)

    def _least(self, leaves: Domains) -> Tensor:
        """Per tree the least bound of its open leaves; 0 where there is none: all lie above."""
        least = torch.zeros_like(self.first)
        return least.scatter_reduce(0, leaves.clause, _trusted(leaves.lower), "amin")

    def _worst(self, leaves: Domains) -> Tensor:
        """Which leaves are split next: the worst ones of every tree that still has some, the same number of each."""
        splittable = self._splittable(leaves)
        key = torch.where(splittable, _trusted(leaves.lower), torch.inf)
        order = key.argsort(stable=True)
        order = order[leaves.clause[order].argsort(stable=True)]
        clause = leaves.clause[order]
        position = torch.arange(len(leaves), device=clause.device)
        first = torch.full_like(self.first, len(leaves), dtype=torch.long)
        first = first.scatter_reduce(0, clause, position, "amin")
        rank = position - first[clause]
        trees = int((torch.bincount(clause, minlength=len(self.first)) > 0).sum())
        each = max(1, self.settings.parents // max(1, trees))
        chosen = torch.zeros(len(leaves), dtype=torch.bool, device=clause.device)
        chosen[order] = rank < each
        return chosen & splittable

    def _splittable(self, leaves: Domains) -> Tensor:
        """Leaves ``[D]`` that have a neuron left to split: fewer splits than unstable columns."""
        return (leaves.sign != 0).sum(1) < self.layout.width

    def _children(self, parents: Domains, first_id: int, seconds_left: SecondsLeft) -> Domains:
        facts = self.bounder.facts(parents)
        known = BranchInput(facts.coef, facts.lower, facts.upper, parents.sign, parents.id, parents.depth)

        def tried(parent: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
            return try_children(self.bounder, parents, parent, column, self.settings.tiling.height)

        columns = self.brancher.choose(known, 1, tried)
        return self.bounder.bound(split(parents, columns, first_id), seconds_left)

    def _box(self, least: Tensor) -> Interval:
        """The box with both sides of the layer's neurons replaced, none looser."""
        count = len(self.neurons)
        flat = self.box.flat()
        lower, upper = flat.lower.clone(), flat.upper.clone()
        lower[0, self.neurons] = torch.fmax(lower[0, self.neurons], least[:count])
        upper[0, self.neurons] = torch.fmin(upper[0, self.neurons], -least[count:])
        shape = self.box.lower.shape
        return Interval(lower.reshape(shape), upper.reshape(shape))
