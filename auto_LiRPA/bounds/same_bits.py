"""What every rank of tensor parallelism computes for itself from the same numbers has to come out the same.

A pass adds up the ranks' parts of one set of relaxations. If two ranks had different ones, be it in a last bit that
decides a slope, the sum would bound nothing. So a difference ends the run; it is never a bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from auto_LiRPA.errors import ContractError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.values import Interval


def check_boxes(graph: Graph, boxes: Mapping[int, Interval]) -> None:
    """`check_same_bits` of boxes, whole as they are."""
    if graph.spread is not None:
        check_same_bits(graph, (side for _, box in sorted(boxes.items()) for side in (box.lower, box.upper)))


def check_same_bits(graph: Graph, tensors: Iterable[Tensor]) -> None:
    """Compare tensors with those of the other ranks; waits for the device. Nothing where nothing is spread.

    Raises:
        ContractError: some bit differs.
    """
    if graph.spread is None:
        return
    parts = [t.detach().contiguous().view(-1).view(torch.uint8) for t in tensors]
    if not parts:
        return
    every = graph.spread.ranks.gather(torch.cat(parts))
    if not bool((every == every[:1]).all()):
        raise ContractError(
            "parallel.mode tp: ranks have come to different numbers from the same ones; are their devices and versions"
            " of torch alike?"
        )
