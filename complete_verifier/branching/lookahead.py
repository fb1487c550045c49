"""kFSB: the best few neurons by cheap scores, each tried by one bounding pass of both children (interface 7.6)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from complete_verifier.branching.scores import BACKUP_FLOOR, MAIN_FLOOR, Scores

NEVER = -999999.0

# (parent index [N], neuron column [N], sign +-1) -> margin [N] of that child after one pass
TryChild = Callable[[Tensor, Tensor, int], Tensor]


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
