"""Whether all ranks begin a search with the same sub-problems: one that another rank lacks would never be looked at."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor

from auto_LiRPA.errors import ContractError
from auto_LiRPA.parallel.groups import Group
from complete_verifier.bab.domains import Domains
from complete_verifier.branching.layout import make_layout
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem


def check_same_start(problem: Problem, start: IncompleteResult, roots: Domains, bitwise: bool) -> None:
    """Compare checksums of the open clauses and of the splittable neurons; ``bitwise``: of all numbers too.

    Raises:
        ContractError: they differ between ranks.
    """
    layout = make_layout(problem.graph, start.intermediate)
    parts = [roots.clause, *(layer.index for layer in layout.layers)]
    if bitwise:
        parts += roots.tensors()
        parts += [side for box in start.intermediate.boxes.values() for side in (box.lower, box.upper)]
    check_same(problem.context.world, len(roots), parts)


def check_same(world: Group, count: int, parts: Iterable[Tensor]) -> None:
    """Compare the number of roots and a checksum of some tensors over ranks.

    Raises:
        ContractError: they differ.
    """
    if world.size == 1:
        return
    every = world.numbers([count, _checksum(parts)])
    different = [rank for rank, row in enumerate(every) if row != every[0]]
    if different:
        raise ContractError(
            f"rank {different[0]} begins branch and bound with other sub-problems than rank 0: their bounds differ"
        )


def _checksum(tensors: Iterable[Tensor]) -> int:
    crc = 0
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            crc = zlib.crc32(flat.view(torch.uint8).numpy().data, crc)
    return crc
