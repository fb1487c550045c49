"""Which dimensions of each box are cut next: by scores, or by trying all of them (brute force)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from complete_verifier.input_bab.bounding import Bounded
from complete_verifier.input_bab.domains import Domains
from complete_verifier.input_bab.groups import Groups
from complete_verifier.input_bab.scores import best_dimensions, sensitivity, widths
from complete_verifier.input_bab.settings import ScoreSettings
from complete_verifier.input_bab.split import cut, cuttable

# Added to a dimension whose interval contains 0, where that is favoured: more than any gain that is compared.
_ZERO_CROSSING_BONUS = 1.0

Bound = Callable[[Domains], Tensor]  # margins [D, G]


def scored(domains: Domains, bounded: Bounded, groups: Groups, settings: ScoreSettings, most: int) -> Tensor:
    """Dimensions ``[D, L]`` to cut by naive or sb. Boxes without linear bounds are cut where they are widest."""
    if settings.method == "naive":
        return best_dimensions(domains, widths(domains), most)
    rows = groups.real[domains.group] & domains.open[..., None]
    scores = sensitivity(domains, bounded.coef, bounded.gap, rows, settings)
    scores = torch.where(bounded.linear[:, None], scores, widths(domains))
    return best_dimensions(domains, scores, most)


def tried(
    domains: Domains, order: Tensor, settings: ScoreSettings, bound: Bound, partitions: int, hint: Tensor | None
) -> Tensor:
    """``order`` ``[D, L]`` with the dimension in front, of those tried, whose children have the best bounds.

    A cut's gain is the mean over its children of what their worst clause gains on the parent's; more than a proof
    gains nothing. Where the best gain is below ``bf_backup_thresh`` the order stays.
    """
    count, inputs = domains.lower.shape
    possible = cuttable(domains.lower, domains.upper) & _candidates(domains, order, settings.candidates)
    domain, dimension = possible.nonzero(as_tuple=True)
    if len(domain) == 0:
        return order
    gains = domains.lower.new_full((count, inputs), -torch.inf)
    gain = torch.cat([
        _gain(domains.pick(d), j, settings, bound, partitions, hint)
        for d, j in zip(
            domain.split(max(1, settings.bf_batch_size // partitions)),
            dimension.split(max(1, settings.bf_batch_size // partitions)),
            strict=True,
        )
    ])  # fmt: skip
    gains[domain, dimension] = gain
    if settings.bf_zero_crossing:
        gains = gains + _ZERO_CROSSING_BONUS * ((domains.lower < 0) & (domains.upper > 0))
    best, first = gains.max(1)
    usable = possible.any(1) & (best >= settings.bf_backup_thresh)
    front = first.to(order.dtype)[:, None]
    # the other dimensions keep their order behind it; the last one falls out where it does not fit
    rank = torch.where(order == front, -1, torch.arange(order.shape[1], device=order.device))
    behind = order.gather(1, rank.argsort(dim=1, stable=True))
    moved = torch.where((order == front).any(1, keepdim=True), behind, torch.cat([front, order[:, :-1]], 1))
    return torch.where(usable[:, None], moved, order)


def _candidates(domains: Domains, order: Tensor, count: int) -> Tensor:
    """Dimensions ``[D, m]`` to try: the first of each order, and the widest."""
    first = order[:, :count].to(torch.int64)
    chosen = torch.zeros_like(domains.lower, dtype=torch.bool)
    chosen.scatter_(1, widths(domains).argmax(1, keepdim=True), True)
    return chosen.scatter_(1, first.clamp_min(0), (first >= 0) | chosen.gather(1, first.clamp_min(0)))


def _gain(
    domains: Domains, dimension: Tensor, settings: ScoreSettings, bound: Bound, partitions: int, hint: Tensor | None
) -> Tensor:
    before = domains.worst()
    children = cut(replace(domains, order=dimension.to(torch.int16)[:, None]), 1, partitions, hint, 0)
    margin = bound(children) - settings.bf_rhs_offset
    worst = torch.where(children.open, margin.nan_to_num(nan=-torch.inf), torch.inf).amin(1).clamp_max(0)
    total, number = torch.zeros_like(before), torch.zeros_like(before)
    parent = _parents(domains, children)
    floor = torch.finfo(worst.dtype).min
    total = total.index_add(0, parent, worst.clamp_min(floor / (4 * partitions)))
    number = number.index_add(0, parent, torch.ones_like(worst))
    gain = total / number.clamp_min(1) - before.clamp_min(floor / 4)
    return gain.nan_to_num(nan=0.0)


def _parents(parents: Domains, children: Domains) -> Tensor:
    """The position of each child's parent, children having kept nothing of it but its place in blocks."""
    return torch.arange(len(children), device=children.id.device) % len(parents)
