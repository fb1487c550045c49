"""BaBSR scores: the estimated effect of a split on the bound (Bunel et al. 2020; interface 7.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.activation import ReluRelaxation
from auto_LiRPA.operators.arithmetic import Add, Sub
from auto_LiRPA.operators.base import LinearOperator, Relaxation
from auto_LiRPA.operators.shape import Reshape
from complete_verifier.branching.layout import Layout

MAIN_FLOOR = 1e-4  # main scores at or below it say nothing (interface 7.6, kfsb)
BACKUP_FLOOR = -1e-4


@dataclass(frozen=True, slots=True)
class Scores:
    """Per domain and splittable neuron ``[D, U]``: ``main`` larger is better, ``backup`` more negative is better.

    Neurons that cannot be split any more have ``splittable`` False and must not be chosen.
    """

    main: Tensor
    backup: Tensor
    splittable: Tensor


def preactivation_bias(graph: Graph, source: int) -> Tensor | None:
    """Constant term of the linear layer that feeds a ReLU, flat ``[n]``; branches that meet in an Add are summed."""
    node = graph.nodes[source]
    if isinstance(node.op, (Add, Sub)):
        parts = [preactivation_bias(graph, i) for i in node.inputs]
        if isinstance(node.op, Sub) and parts[1] is not None:
            parts[1] = -parts[1]
        known = [p for p in parts if p is not None]
        return sum(known[1:], start=known[0]) if known else None
    if isinstance(node.op, Reshape):
        return preactivation_bias(graph, node.inputs[0])
    if not isinstance(node.op, LinearOperator):
        return None
    bias = node.op.bias_values()
    return None if bias is None else bias.expand(node.shape).flatten()


def babsr_scores(
    graph: Graph,
    layout: Layout,
    coefficients: Mapping[int, Tensor],
    relaxations: Mapping[int, Relaxation],
    sign: Tensor,
    reduceop: str,
) -> Scores:
    """Scores of every splittable neuron.

    Args:
        coefficients: coefficient on each ReLU's output, ``[D, R, *shape]``; scores are averaged over R.
    """
    reduce = {"min": torch.minimum, "max": torch.maximum, "mean": lambda a, b: (a + b) / 2}[reduceop]
    mains, backups, open_ = [], [], []
    for layer in layout.layers:
        relaxation = relaxations[layer.node]
        assert isinstance(relaxation, ReluRelaxation)
        lines, box = relaxation.lines, relaxation.box.pick(layer.index)
        assert lines.upper_offset is not None
        slope = lines.upper_slope.flatten(1)[:, layer.index].unsqueeze(1)
        offset = lines.upper_offset.flatten(1)[:, layer.index].unsqueeze(1)
        coef = coefficients.get(layer.node)
        if coef is None:
            a = torch.zeros(sign.shape[0], 1, len(layer.index), dtype=slope.dtype, device=slope.device)
        else:
            a = coef.flatten(2)[:, :, layer.index]
        bias = preactivation_bias(graph, layer.source)
        b = torch.zeros_like(slope) if bias is None else bias[layer.index].to(slope)
        down = a.clamp_max(0) * offset
        main = (reduce(a * b * (slope - 1), a * b * slope) + down).abs()
        mains.append(main.mean(1))
        backups.append(down.mean(1))
        open_.append((box.lower < 0) & (box.upper > 0))
    splittable = torch.cat(open_, 1) & (sign == 0)
    return Scores(torch.cat(mains, 1), torch.cat(backups, 1), splittable)


def choose(scores: Scores, levels: int) -> Tensor:
    """Best ``levels`` neurons of each domain by plain BaBSR ``[D, levels]``; -1 where there are too few.

    A domain whose main scores all vanish goes by the backup score; neurons without any score come last, in order.
    """
    main = torch.where(scores.main > MAIN_FLOOR, scores.main, 0.0)
    has_main = (main.where(scores.splittable, torch.zeros_like(main))).amax(1, keepdim=True) > 0
    key = torch.where(has_main, main, (-scores.backup).clamp_min(0))
    key = torch.where(scores.splittable, torch.nan_to_num(key), -torch.inf)
    levels = min(levels, key.shape[1])
    order = key.argsort(dim=1, descending=True, stable=True)[:, :levels]
    return torch.where(scores.splittable.gather(1, order), order, -1)
