"""Linear bounds of all splittable neurons on the input, made once: what constraints and bounds of clipping are made of.

A row says ``coef . x + bias <= s z`` for every input x of its region, with s = +1 (a lower bound of the neuron z) or
s = -1 (the negation of an upper bound). So the same row is a constraint where the neuron is split: ``s z <= 0`` cannot
hold unless ``coef . x + bias <= 0``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import NeuronList, backward, neuron_rows
from auto_LiRPA.bounds.columns import Layout
from auto_LiRPA.bounds.intermediate import cut_rows
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import NonlinearOperator, Relaxation
from auto_LiRPA.parallel.store import LocalStore
from auto_LiRPA.parallel.whole import whole
from auto_LiRPA.values import Interval
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

logger = logging.getLogger(__name__)

MAX_BYTES = 2**30  # of all rows of all regions; a larger network is searched without clipping


@dataclass(frozen=True, slots=True)
class InputLines:
    """Rows for K regions, U columns and the n inputs that move in some region.

    ``coef`` ``[K, 2 U + 1, n]``, ``bias`` ``[K, 2 U + 1]``: row ``column`` bounds z from below, row ``U + column``
    bounds -z, the last row is zero. ``scale`` ``[K, 2 U + 1]``: sum of the magnitudes that a row adds up, for
    rounding. ``center``, ``radius`` ``[K, n]``: the box. ``moving`` ``[n]``: the flat inputs.
    """

    coef: Tensor
    bias: Tensor
    scale: Tensor
    center: Tensor
    radius: Tensor
    moving: Tensor

    @property
    def width(self) -> int:
        """Columns U."""
        return (int(self.bias.shape[1]) - 1) // 2


def make_input_lines(problem: Problem, root: IncompleteResult, layout: Layout) -> InputLines | None:
    """Rows by one backward pass per tile, in float64; None where they would take too much memory.

    They are kept in the run's precision, and a bias is lowered by whatever rounding to it could add to its row, so
    that a row never lies above the one that was computed. All ranks that share weights call this together.

    Raises:
        OutOfTime: the time limit passed between two tiles.
    """
    box = problem.region.interval().flat()
    dtype, regions = box.lower.dtype, box.lower.shape[0]
    moving = (box.upper > box.lower).any(0).nonzero().squeeze(-1)
    size = regions * (2 * layout.width + 1) * len(moving) * box.lower.element_size()
    if size > MAX_BYTES or len(moving) == 0:
        logger.warning("clipping is off: linear bounds of %d neurons would take %d MiB", layout.width, size >> 20)
        return None
    wide = Interval(box.lower.double(), box.upper.double())
    graph, relaxations = _in_float64(problem, root)
    coef = torch.zeros(regions, 2 * layout.width + 1, len(moving), dtype=dtype, device=moving.device)
    bias = torch.zeros(coef.shape[:2], dtype=dtype, device=moving.device)
    for layer in layout.layers:
        neurons = NeuronList.of(layer.index, torch.float64)
        for tile in cut_rows(graph, layer.source, len(neurons), regions, problem.context, 8):
            problem.context.check_time()
            rows = neuron_rows(graph, layer.source, neurons.cut(tile.start, tile.stop, tile.height))
            found = backward(graph, rows, relaxations)
            count = tile.stop - tile.start
            for half in (0, 1):
                start = half * layout.width + layer.start + tile.start
                mine = slice(half * tile.height, half * tile.height + count)
                constant = found.bias[:, mine].expand(regions, -1)
                whole = None if found.coef is None else found.coef[:, mine].flatten(2).expand(regions, -1, -1)
                row, offset = _kept(whole, constant, wide, moving, dtype)
                coef[:, start : start + count], bias[:, start : start + count] = row, offset
    lower, upper = box.lower[:, moving], box.upper[:, moving]
    center = (lower + upper) / 2
    # rounded outwards, so that the ends stay inside
    radius = torch.maximum(upper - center, center - lower)
    radius = torch.where(radius > 0, torch.nextafter(radius, torch.full_like(radius, torch.inf)), radius)
    scale = bias.abs() + (coef.abs() @ (center.abs() + radius).unsqueeze(-1)).squeeze(-1)
    return InputLines(coef, bias, scale, center, radius, moving)


def _kept(
    whole: Tensor | None, bias: Tensor, box: Interval, moving: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Rows on the moving inputs alone, rounded to ``dtype`` downwards: ``[K, T, n]``, ``[K, T]``."""
    if whole is None:
        coef = torch.zeros(*bias.shape, len(moving), dtype=dtype, device=bias.device)
    else:
        still = torch.ones(whole.shape[2], dtype=torch.bool, device=bias.device)
        still[moving] = False
        bias = bias + (whole * torch.where(still, box.lower, 0.0).unsqueeze(1)).sum(2)
        exact = whole[:, :, moving]
        coef = exact.to(dtype)
        farthest = torch.maximum(box.lower.abs(), box.upper.abs())[:, moving]
        bias = bias - ((exact - coef.double()).abs() @ farthest.unsqueeze(-1)).squeeze(-1)
    kept = torch.nextafter(bias.to(dtype), torch.full_like(bias, -torch.inf, dtype=dtype))
    # a row that overflowed says nothing: as a constraint it always holds, as a bound it is the lowest number
    good = torch.isfinite(kept) & torch.isfinite(coef).all(2)
    nothing = torch.finfo(dtype).min / 4
    return torch.where(good.unsqueeze(2), coef, 0.0), torch.where(good, kept, nothing)


def _in_float64(problem: Problem, root: IncompleteResult) -> tuple[Graph, Mapping[int, Relaxation]]:
    """The network and its relaxations over the root's boxes in float64, whatever the run's precision."""
    store = LocalStore(problem.context.settings.block_mib)
    graph = problem.graph.mapped(
        lambda t: t.double() if t.is_floating_point() else t,
        lambda w: store.place(whole(w, torch.float64)),
    )
    boxes = {k: Interval(b.lower.double(), b.upper.double()) for k, b in root.intermediate.boxes.items()}
    relaxations: dict[int, Relaxation] = {}
    for node in graph.nodes:
        if node.id in root.intermediate.relaxations:
            assert isinstance(node.op, NonlinearOperator)
            relaxations[node.id] = node.op.relax(*(boxes[i] for i in node.inputs))
    return graph, relaxations
