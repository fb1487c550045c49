"""Children of boxes: cuts at shared points, so that the children of a box cover it exactly."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from complete_verifier.input_bab.domains import Domains


def cuttable(lower: Tensor, upper: Tensor) -> Tensor:
    """Dimensions ``[D, m]`` that have a number strictly inside."""
    return torch.nextafter(lower, upper) < upper


def cut(parents: Domains, levels: int, partitions: int, hint: Tensor | None, first_id: int) -> Domains:
    """Cut each parent along the first ``levels`` dimensions of its order (fewer where its order is shorter).

    Neighbouring children share the cut point, so no input between them is lost. Children without a number inside
    that their parent did not have (two cut points in one place) are left out: a neighbour is that very box.

    Args:
        partitions: parts of each cut.
        hint: ``[m]`` where to cut in two, if that lies inside; else the midpoint.
    """
    children = parents
    for level in range(levels):
        children = _cut_once(children, level, partitions, hint)
    ids = torch.arange(first_id, first_id + len(children), device=children.id.device)
    return replace(children, id=ids)


def _cut_once(parents: Domains, level: int, partitions: int, hint: Tensor | None) -> Domains:
    dimension = parents.order[:, level].to(torch.int64)
    has = dimension >= 0
    whole, cutting = (~has).nonzero().squeeze(-1), has.nonzero().squeeze(-1)
    column = dimension[cutting].unsqueeze(1)
    low, high = parents.lower[cutting].gather(1, column), parents.upper[cutting].gather(1, column)
    ends = _cut_points(low, high, partitions, None if hint is None else hint[column])  # [D', partitions + 1]
    index = cutting.repeat(partitions)
    children = parents.pick(torch.cat([index, whole]))
    lower, upper = children.lower.clone(), children.upper.clone()
    count = len(index)
    columns = column.repeat(partitions, 1)
    lower[:count] = lower[:count].scatter(1, columns, ends[:, :-1].T.reshape(-1, 1))
    upper[:count] = upper[:count].scatter(1, columns, ends[:, 1:].T.reshape(-1, 1))
    depth = children.depth.clone()
    depth[:count] += 1
    children = replace(children, lower=lower, upper=upper, depth=depth)
    if partitions == 2:
        return children
    # many parts of a narrow interval: cut points may coincide, which makes boxes that a neighbour contains
    empty = torch.zeros(len(children), dtype=torch.bool, device=lower.device)
    empty[:count] = (ends[:, :-1] == ends[:, 1:]).T.reshape(-1)
    return children.pick((~empty).nonzero().squeeze(-1))


def _cut_points(low: Tensor, high: Tensor, partitions: int, hint: Tensor | None) -> Tensor:
    """Ascending ends ``[D, partitions + 1]`` from ``low`` to ``high`` ``[D, 1]``, both of them exact."""
    share = torch.arange(1, partitions, device=low.device, dtype=low.dtype) / partitions
    inner = low + share * (high - low)
    if partitions == 2:
        # a midpoint that rounding puts on an end would leave one child as large as the parent
        inner = torch.minimum(torch.maximum(inner, torch.nextafter(low, high)), torch.nextafter(high, low))
        if hint is not None:
            inner = torch.where((low < hint) & (hint < high), hint, inner)
    inner = torch.minimum(torch.maximum(inner, low), high)
    return torch.cat([low, inner, high], 1)
