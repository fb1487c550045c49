"""One tile's backward pass: coefficients of a start node pushed to the input (CROWN, Zhang et al. 2018, eq. 8-12).

A pass is a schedule over a sorted, immutable graph; nothing is parked on nodes, so passes can run side by side.
Shape letters: B batch elements or domains, T rows of the tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.rows import NeuronList, Rows, neuron_rows, spec_rows
from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.operators.base import LinearOperator, Relaxation
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.values import Region, Window
from auto_LiRPA.values.windows import whole

__all__ = [
    "NeuronList",
    "Pass",
    "Relaxations",
    "Rows",
    "Slopes",
    "SplitTerm",
    "backward",
    "concretize",
    "effective_slopes",
    "neuron_rows",
    "spec_rows",
]

Relaxations = Mapping[int, Relaxation]
Slopes = Mapping[int, Tensor]  # per nonlinear node: [B, T, P, u]


@dataclass(frozen=True, slots=True)
class SplitTerm:
    """Lagrangian terms of the splits at one node: ``coef -= beta * sign`` and ``bias += beta * sign * point``.

    ``index``: flat neurons ``[u]``; ``beta``, ``sign`` (+1: z >= point, -1: z <= point, 0: no split): ``[B, u]``.
    ``point``: ``[B, u]`` or None for zero. Source: beta-CROWN, Wang et al. 2021, theorem 3.1.
    """

    index: Tensor
    beta: Tensor
    sign: Tensor
    point: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """Result of a backward pass: ``coef . x + bias`` on the input; ``saved``: coefficients at nonlinear nodes."""

    coef: Tensor | None
    bias: Tensor
    saved: Mapping[int, Tensor]


def backward(
    graph: Graph,
    rows: Rows,
    relaxations: Relaxations,
    slopes: Slopes | None = None,
    splits: Mapping[int, SplitTerm] | None = None,
    save: bool = False,
    stop: frozenset[int] = frozenset(),
) -> Pass:
    """Push ``rows`` down to the input.

    Args:
        relaxations: for every nonlinear node below ``rows.node``.
        slopes: optimised slopes per nonlinear node; values outside their sound range are clamped.
        splits: per node (a nonlinear node's input), the split terms added there.
        save: keep the coefficient that arrives at each nonlinear node (for the gradient).
        stop: nodes where the pass ends besides the input; their coefficients come back in ``saved``.
    """
    in_place = not torch.is_grad_enabled()
    spread = graph.spread
    pending: dict[int, _Entry] = {rows.node: _Entry(rows.coef, rows.owned and in_place, rows.window)}
    saved: dict[int, Tensor] = {}
    bias: Tensor | None = rows.bias
    start, nothing = rows.node, rows.coef.new_zeros(1, rows.coef.shape[1])
    del rows  # or its coefficients would be held to the end of the pass: a third of a tile's memory
    partial: Tensor | None = None  # constant terms of this rank's own neurons: summed over the ranks at the end
    for node in reversed(graph.nodes[1 : start + 1]):
        entry = pending.pop(node.id, None)
        if entry is None:
            continue
        mine = spread is not None and spread.sums(node.id)
        if entry.window is not None and not (slopes or splits or save or node.id in stop):
            step = _windowed_step(node, entry, relaxations, in_place)
            if step is not None:
                bias, partial = _add_constant(bias, partial, step[0], mine)
                for source, found in zip(node.inputs, step[1], strict=True):
                    _merge(pending, source, found, graph, in_place)
                continue
        coef, owned = entry.whole(node)
        if splits is not None and node.id in splits:
            coef, constant = _add_split(coef, splits[node.id])
            bias, partial = _add_constant(bias, partial, constant, mine)
            owned = in_place
        if node.id in stop:
            saved[node.id] = coef
            continue
        if isinstance(node.op, LinearOperator):
            pulled = node.op.pull(coef)
            fresh = owned or isinstance(node.op, Linear)
        else:
            relaxation = relaxations[node.id]
            if save:
                saved[node.id] = coef
            pulled = relaxation.pull(coef, effective_slopes(relaxation, node.id, slopes), owned and not save)
            fresh = True
        del coef, entry
        bias, partial = _add_constant(bias, partial, pulled.bias, mine)
        alone = in_place and fresh and len(node.inputs) == 1
        for source, term in zip(node.inputs, pulled.coefs, strict=True):
            _merge(pending, source, _Entry(term, alone, None), graph, in_place)
        del pulled, term
    last = pending.pop(0, None)
    if partial is not None and spread is not None:
        # rows that no rank's neurons add a constant to have None on all ranks alike
        bias = _sum(bias, spread.ranks.total(partial.contiguous()))
    if bias is None:
        bias = nothing
    return Pass(None if last is None else last.whole(graph.nodes[0])[0], bias, saved)


@dataclass(frozen=True, slots=True)
class _Entry:
    """Coefficients that wait for their node's turn: all of the map, or a window of it."""

    coef: Tensor
    owned: bool
    window: Window | None

    def whole(self, node: Node) -> tuple[Tensor, bool]:
        """The coefficients on the whole value, and whether they may be overwritten."""
        if self.window is None:
            return self.coef, self.owned
        placed = self.window.place(self.coef, whole(node.shape[1:]))
        return placed, self.owned or placed is not self.coef


def _windowed_step(
    node: Node, entry: _Entry, relaxations: Relaxations, in_place: bool
) -> tuple[Tensor | None, list[_Entry]] | None:
    """One step on a window alone; None where the operator has no such form."""
    window = entry.window
    assert window is not None
    if isinstance(node.op, LinearOperator):
        found = node.op.pull_window(entry.coef, window)
        if found is None:
            return None
        pulled, windows = found
        alone = in_place and len(node.inputs) == 1
        entries = [_Entry(c, alone, w) for c, w in zip(pulled.coefs, windows, strict=True)]
        return pulled.bias, entries
    part = relaxations[node.id].cropped(window)
    if part is None:
        return None
    pulled = part.pull(entry.coef, None, entry.owned)
    return pulled.bias, [_Entry(pulled.coefs[0], in_place, window)]


def _merge(pending: dict[int, _Entry], source: int, found: _Entry, graph: Graph, in_place: bool) -> None:
    """Add coefficients to those that already wait at a node; a window that has grown too large becomes the map."""
    shape = graph.nodes[source].shape
    waiting = pending.get(source)
    if waiting is not None:
        if waiting.window is not None and found.window is not None:
            both = waiting.window.union(found.window)
            coef = waiting.window.place(waiting.coef, both) + found.window.place(found.coef, both)
            found = _Entry(coef, in_place, both)
        else:
            node = graph.nodes[source]
            found = _Entry(waiting.whole(node)[0] + found.whole(node)[0], in_place, None)
    if found.window is not None and not found.window.worthwhile(shape[1:]):
        coef, owned = found.whole(graph.nodes[source])
        found = _Entry(coef, owned and in_place, None)
    pending[source] = found


def effective_slopes(relaxation: Relaxation, node: int, slopes: Slopes | None) -> Tensor | None:
    """The slopes of ``node`` clamped to the range that is sound over the relaxation's present box."""
    spec = relaxation.alpha if slopes is not None and node in slopes else None
    if spec is None or slopes is None:
        return None
    return torch.clamp(slopes[node], spec.lower, spec.upper)  # type: ignore[arg-type]


def concretize(result: Pass, region: Region) -> Tensor:
    """Least value of a finished pass over the region: ``[B, T]``."""
    if result.coef is None:
        batch = region.center().shape[0]
        return result.bias.expand(batch, -1)
    return region.minimum(result.coef) + result.bias


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _add_constant(
    bias: Tensor | None, partial: Tensor | None, constant: Tensor | None, mine: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Both sums with a constant added to the one it belongs to: ``mine`` says that other ranks add theirs."""
    return (bias, _sum(partial, constant)) if mine else (_sum(bias, constant), partial)


def _add_split(coef: Tensor, term: SplitTerm) -> tuple[Tensor, Tensor | None]:
    """``coef[..., index] -= beta * sign``, the same for all rows of a domain; and what that adds to the bias."""
    shift = term.beta * term.sign
    flat = coef.flatten(2)
    batch = max(flat.shape[0], shift.shape[0])
    flat = flat.expand(batch, -1, -1).index_add(2, term.index, -shift.unsqueeze(1).expand(batch, flat.shape[1], -1))
    constant = None if term.point is None else (shift * term.point).sum(-1, keepdim=True)
    return flat.reshape(batch, *coef.shape[1:]), constant
