"""BaBSR scores: the estimated effect of a split on the bound (Bunel et al. 2020; interface 7.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.activation import ReluRelaxation
from auto_LiRPA.operators.base import Relaxation
from complete_verifier.branching.columns import Columns, preactivation_bias
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


def flat_scores(
    columns: Columns, coef: Tensor, lower: Tensor, upper: Tensor, sign: Tensor, reduceop: str
) -> Scores:
    """Scores of every splittable neuron from tensors over all layers at once, without waiting for the device.

    With s = u/(u-l), t = -l s, b the bias and A the coefficient on the ReLU's output:
    ``main = |reduceop(A b (s-1), A b s) + [A]- t|``, ``backup = [A]- t``.

    Args:
        coef: coefficient on each ReLU's output, ``[D, U]`` (of the row that bounds the domain).
        lower: pre-activation bounds ``[D, U]``, splits not counted (strides of 0 are fine); so is ``upper``.
        sign: splits ``[D, U]``, 0 where there is none.
        reduceop: which of the two children counts in ``main``: min, max or mean; auto is min.
    """
    splittable = (lower < 0) & (upper > 0) & (sign == 0)
    share = torch.where(splittable, upper / (upper - lower), 0.0)
    rise = coef if columns.leak is None else coef * (1 - columns.leak)
    down = rise.clamp_max(0) * torch.where(splittable, -lower * share, 0.0)
    ab = rise * columns.bias
    # A b s - A b is the least of the two where A b > 0, else A b s is: no second product has to be made
    match reduceop:
        case "max":
            step = ab.clamp_max(0)
        case "mean":
            step = ab / 2
        case _:
            step = ab.clamp_min(0)
    return Scores((ab * share - step + down).abs(), down, splittable)


def intercept_scores(coef: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Area of the relaxation's triangle under the coefficient, ``(-l u)/(u-l+1e-8) |A|`` ``[D, U]``; larger is better.

    Meaningful where the neuron is unstable only.
    """
    return -lower * upper / (upper - lower + 1e-8) * coef.abs()


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
