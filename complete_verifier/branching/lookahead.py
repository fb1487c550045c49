"""Look-ahead: the best few neurons by cheap scores, each tried by one bounding pass of both children."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from complete_verifier.branching.picking import best_columns, open_keys, without
from complete_verifier.branching.scores import BACKUP_FLOOR, MAIN_FLOOR, Scores

# (parent index [N], neuron column [N]) -> margins [N] of the "+" children and [N] of the "-" children after one pass
TryChildren = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def candidates_of(scores: Scores, count: int, by_main: bool = True) -> tuple[Tensor, Tensor]:
    """The ``count`` best neurons by main score, if asked for, then the ``count`` best others by backup score.

    Returns:
        Columns ``[D, count or 2 count]`` (-1: too few), and which of them have a score that says something.
    """
    allowed, parts, telling = scores.splittable, [], []
    if by_main:
        key = open_keys(scores.main, allowed)
        parts.append(best_columns(key, count))
        telling.append(key.gather(1, parts[0].clamp_min(0)) > MAIN_FLOOR)
        allowed = without(allowed, parts[0])
    key = open_keys(-scores.backup, allowed)
    parts.append(best_columns(key, count))
    telling.append(key.gather(1, parts[-1].clamp_min(0)) > -BACKUP_FLOOR)
    return torch.cat(parts, 1), torch.cat(telling, 1)


def look_ahead(columns: Tensor, telling: Tensor, levels: int, reduceop: str, try_children: TryChildren) -> Tensor:
    """Try all candidates ``[D, K]`` in one call; the ``levels`` best ones ``[D, levels]``, -1 where there are too few.

    Source: kFSB, De Palma et al. 2021 (interface 7.6). Candidates whose score says nothing come after all others, but
    among them the bounds decide too. Ties go to the earlier candidate. A NaN margin is worse than any number.

    Args:
        columns: candidates, each neuron once per domain; -1 for none.
    """
    count, width = columns.shape
    parent = torch.arange(count, device=columns.device).repeat_interleave(width)
    # shapes stay the same for all domains: where there is no candidate, the first one is tried again
    tried = torch.where(columns < 0, columns[:, :1], columns).clamp_min(0)
    value = merged(*try_children(parent, tried.flatten()), reduceop).reshape(count, width)
    value = torch.nan_to_num(value, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    order = value.argsort(dim=1, descending=True, stable=True)
    rank = torch.where(columns < 0, 2, torch.where(telling, 0, 1)).gather(1, order)
    order = order.gather(1, rank.argsort(dim=1, stable=True))
    chosen = columns.gather(1, order[:, :levels])
    missing = levels - chosen.shape[1]
    return chosen if missing <= 0 else torch.nn.functional.pad(chosen, (0, missing), value=-1)


def merged(plus: Tensor, minus: Tensor, reduceop: str) -> Tensor:
    """What the two children's margins are worth together; auto is min."""
    match reduceop:
        case "max":
            return torch.maximum(plus, minus)
        case "mean":
            return (plus + minus) / 2
        case _:
            return torch.minimum(plus, minus)

