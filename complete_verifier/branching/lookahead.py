"""Look-ahead: the best few neurons by cheap scores, each tried by one bounding pass of both children."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from complete_verifier.branching.picking import best_columns, open_keys, without
from complete_verifier.branching.scores import BACKUP_FLOOR, MAIN_FLOOR, Scores

NEVER = -999999.0

# (parent index [N], neuron column [N], sign +-1) -> margin [N] of that child after one pass
TryChild = Callable[[Tensor, Tensor, int], Tensor]

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


def kfsb(scores: Scores, candidates: int, levels: int, reduceop: str, try_child: TryChild) -> Tensor:
    """Best ``levels`` neurons of each domain ``[D, levels]``; -1 where there are too few.

    The ``k`` best by main and the ``k`` best by backup score are tried; k = max(candidates, levels).
    """
    count, width = scores.main.shape
    k = min(max(candidates, levels), width)
    main_key = torch.where(scores.splittable, scores.main, -torch.inf)
    backup_key = torch.where(scores.splittable, scores.backup, torch.inf)
    by_main = main_key.argsort(dim=1, descending=True, stable=True)[:, :k]
    by_backup = backup_key.argsort(dim=1, stable=True)[:, :k]
    columns = torch.cat([by_main, by_backup], dim=1)
    telling = torch.cat(
        [main_key.gather(1, by_main) > MAIN_FLOOR, backup_key.gather(1, by_backup) < BACKUP_FLOOR], dim=1
    )
    # the same neuron in both halves counts once, or several levels could split it twice
    again = (by_backup.unsqueeze(2) == by_main.unsqueeze(1)).any(2)
    telling[:, k:] &= ~again
    parent = torch.arange(count, device=columns.device).repeat_interleave(2 * k)
    flat = columns.flatten()
    plus, minus = try_child(parent, flat, 1), try_child(parent, flat, -1)
    reduce = {"min": torch.minimum, "max": torch.maximum, "mean": lambda a, b: (a + b) / 2}[reduceop]
    value = torch.nan_to_num(reduce(plus, minus), nan=NEVER).reshape(count, 2 * k)
    splittable = scores.splittable.gather(1, columns)
    value = torch.where(telling & splittable, value, NEVER)
    # candidates that say nothing come after the telling ones, but before nothing at all
    value = torch.where(splittable & ~telling, 2 * NEVER, value)
    value[:, k:] = torch.where(again, 4 * NEVER, value[:, k:])
    value = torch.where(splittable, value, 8 * NEVER)
    order = value.argsort(dim=1, descending=True, stable=True)[:, :levels]
    chosen = columns.gather(1, order)
    return torch.where(value.gather(1, order) > 3 * NEVER, chosen, -1)
