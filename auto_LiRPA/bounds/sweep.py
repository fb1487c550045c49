"""The gradient of a tile's bounds by hand: one forward sweep through the relaxed network (DESIGN 5).

By the envelope theorem the derivative of a bound by the coefficient on a node's output is that node's value in the
row's own relaxed network at the row's minimising input. One sweep gives all those values, and with them the
derivatives by slopes, split multipliers and boxes. No weight and no whole A-matrix is recorded by autograd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import Pass, Relaxations, Slopes, SplitTerm, effective_slopes
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.values import Interval, Region


@dataclass(frozen=True, slots=True)
class Gradient:
    """Derivatives of the weighted sum of a tile's bounds.

    ``slopes``: per nonlinear node ``[B, T, P, u]``; ``boxes``: per nonlinear input ``[B, *shape]`` for both sides;
    ``betas``: per split node ``[B, u]``; ``start``: the start node's value ``[B, T, *shape]`` in each row's relaxed
    network at its minimising input, which is the derivative of each bound by the row's own coefficients.
    """

    slopes: Mapping[int, Tensor]
    boxes: Mapping[int, Interval]
    betas: Mapping[int, Tensor]
    start: Tensor | None = None


def sweep(
    graph: Graph,
    start: int,
    result: Pass,
    region: Region,
    relaxations: Relaxations,
    weight: Tensor,
    slopes: Slopes | None = None,
    splits: Mapping[int, SplitTerm] | None = None,
    with_boxes: bool = True,
    with_start: bool = False,
) -> Gradient:
    """Derivatives of ``sum weight[b, t] * bound[b, t]`` for a pass that started at node ``start`` and was saved."""
    if result.coef is None:
        return Gradient({}, {}, {})
    reached = set(result.saved)
    needed = _needed(graph, start, reached)
    if with_start:
        needed |= graph.ancestors[start] | {start}
    values: dict[int, Tensor] = {0: region.minimizer(result.coef)}
    batch, rows = values[0].shape[:2]
    d_slopes: dict[int, Tensor] = {}
    d_boxes: dict[int, Interval] = {}
    d_betas: dict[int, Tensor] = {}
    for node in graph.nodes[: start + 1]:
        if node.id not in needed:
            continue
        if with_start and node.id in relaxations and node.id not in result.saved:
            # the bound does not depend on this node: any of its values serves where only zeros will read it
            values[node.id] = values[0].new_zeros(batch, rows, *graph.local_shape(node.id))
            continue
        if node.id != 0 and isinstance(node.op, LinearOperator):
            merged = node.op.forward(*(values[i].flatten(0, 1) for i in node.inputs))
            values[node.id] = merged.unflatten(0, (batch, rows))
        elif node.id != 0:
            relaxation = relaxations[node.id]
            inputs = tuple(values[i] for i in node.inputs)
            coef = result.saved[node.id]
            alpha = effective_slopes(relaxation, node.id, slopes)
            if alpha is not None or with_boxes:
                found = relaxation.gradient(coef, inputs, weight, alpha, with_boxes)
                if found.alpha is not None:
                    d_slopes[node.id] = found.alpha
                if with_boxes:
                    _accumulate(d_boxes, node.inputs, found.boxes)
            values[node.id] = relaxation.values(coef, inputs, alpha)
        if splits is not None and node.id in splits:
            term = splits[node.id]
            z = values[node.id].flatten(2)[:, :, term.index]
            gap = z if term.point is None else z - term.point.unsqueeze(1)
            d_betas[node.id] = -term.sign * (gap * weight.unsqueeze(-1)).sum(1)
        _release(graph, values, node.id, needed)
    return Gradient(d_slopes, d_boxes, d_betas, values[start] if with_start else None)


def _needed(graph: Graph, start: int, reached: set[int]) -> frozenset[int]:
    """Nodes whose value some reached nonlinear node (or the start's own split term) reads."""
    needed: set[int] = {start} if start == 0 else set()
    for node_id in reached:
        needed.add(node_id)
        needed |= graph.ancestors[node_id]
    unreached = {n.id for n in graph.nodes[1:] if not isinstance(n.op, LinearOperator)} - reached
    return frozenset(needed - unreached) | {0}


def _accumulate(
    total: dict[int, Interval], sources: tuple[int, ...], found: tuple[Interval | None, ...]
) -> None:
    for source, part in zip(sources, found, strict=True):
        if part is None:
            continue
        if source in total:
            part = Interval(total[source].lower + part.lower, total[source].upper + part.upper)
        total[source] = part


def _release(graph: Graph, values: dict[int, Tensor], done: int, needed: frozenset[int]) -> None:
    """Drop the values that no later needed node reads."""
    for source in [i for i in values if i != done]:
        if not any(user > done and user in needed for user in graph.users[source]):
            del values[source]


def objective_weight(lower: Tensor, reduction: str) -> Tensor:
    """Derivative of the per-element objective by each row's bound: ``[B, S]`` (interface 7.4, loss_reduction_func)."""
    if reduction == "mean":
        return torch.full_like(lower, 1 / lower.shape[1])
    if reduction in ("min", "max"):
        best = lower.argmin(1) if reduction == "min" else lower.argmax(1)
        return torch.nn.functional.one_hot(best, lower.shape[1]).to(lower)
    return torch.ones_like(lower)


def reduce_rows(lower: Tensor, reduction: str) -> Tensor:
    """The per-element objective ``[B]`` of row bounds ``[B, S]``."""
    if reduction == "mean":
        return lower.mean(1)
    if reduction == "min":
        return lower.amin(1)
    return lower.amax(1) if reduction == "max" else lower.sum(1)
