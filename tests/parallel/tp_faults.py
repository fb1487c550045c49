"""Mistakes in the arithmetic between a column and a row weight, and how far each of them gets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from auto_LiRPA.errors import ContractError
from auto_LiRPA.graph.placements import Spread
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.graph.tensor_parallel import tensor_parallel
from auto_LiRPA.operators import parallel_maps
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.groups import Group
from auto_LiRPA.values import Interval
from tests.parallel.tp_networks import NETS
from tests.parallel.tp_workers import Case, Way, bound, distance, samples, settings


@contextmanager
def planted(fault: str) -> Iterator[None]:
    """Run with one mistake in the arithmetic of zones, the same on every rank (so that nothing hangs)."""
    total, broadcast, part, whole_of = Group.total, Group.broadcast, Spread.part, Spread.whole_of
    enter = parallel_maps.Enter.transpose

    def dropped_reduce(self: Any, coef: Tensor) -> tuple[Tensor, ...]:
        return (coef,)

    def doubled_reduce(self: Any, coef: Tensor) -> tuple[Tensor, ...]:
        return enter(self, total(self.ranks, coef))

    def dropped_sum(self: Any, *inputs: Tensor) -> Tensor:
        return inputs[0]

    def constants_stay(self: Any, tensor: Tensor) -> Tensor:
        return tensor if tensor.ndim == 2 and tensor.shape[0] <= 2 else total(self, tensor)

    def constants_everywhere(self: Spread, node: int) -> bool:
        return False

    def bias_everywhere(self: Any) -> Tensor | None:
        return None if self.bias is None else self.ranks.size * self.bias.reshape(-1, *([1] * self.spatial))

    def bias_dot_everywhere(self: Any, coef: Tensor) -> Tensor | None:
        return None if self.bias is None else self.ranks.size * coef.flatten(1) @ self.bias

    def wrong_owner(self: Group, tensor: Tensor, source: int) -> Tensor:
        return broadcast(self, tensor, (source + 1) % self.size)

    def own_part_of_rank_0(self: Spread, node: int, value: Tensor, leading: int = 1) -> Tensor:
        if not self.sharded(node):
            return part(self, node, value, leading)
        first, last = self.range(node)
        return value.narrow(leading + self.places[node].axis, 0, last - first)  # type: ignore[union-attr]

    def backwards(self: Spread, node: int, box: Interval) -> Interval:
        found = whole_of(self, node, box)
        axis = 1 + self.places[node].axis if self.sharded(node) else 1  # type: ignore[union-attr]
        return Interval(found.lower.flip(axis), found.upper.flip(axis))

    faults: dict[str, list[tuple[Any, str, Any]]] = {
        "none": [],
        "dropped reduce of coefficients": [(parallel_maps.Enter, "transpose", dropped_reduce)],
        "doubled reduce of coefficients": [(parallel_maps.Enter, "transpose", doubled_reduce)],
        "dropped sum of values": [(parallel_maps.Exit, "apply", dropped_sum)],
        "constants not reduced": [(Group, "total", constants_stay)],
        "constants of own neurons as if whole": [(Spread, "sums", constants_everywhere)],
        "bias on all ranks": [
            (parallel_maps.Exit, "bias_values", bias_everywhere),
            (parallel_maps.Exit, "bias_dot", bias_dot_everywhere),
        ],
        "rows from the wrong rank": [(Group, "broadcast", wrong_owner)],
        "boxes of another rank's neurons": [(Spread, "part", own_part_of_rank_0)],
        "gathered in the wrong order": [(Spread, "whole_of", backwards)],
    }
    with ExitStack() as stack:
        for owner, name, value in faults[fault]:
            stack.enter_context(patch.object(owner, name, value))
        yield


FAULTS = (
    "none",
    "dropped reduce of coefficients",
    "doubled reduce of coefficients",
    "dropped sum of values",
    "constants not reduced",
    "constants of own neurons as if whole",
    "bias on all ranks",
    "rows from the wrong rank",
    "boxes of another rank's neurons",
    "gathered in the wrong order",
)


ALIKE = ("none", "gathered in the wrong order", "bias on all ranks")


def mutated(case: None) -> dict[str, float]:
    """Per planted fault, the largest distance that it makes on a deep MLP over some methods."""
    case_of = Case(("mlp4",), (), torch.float64)
    context = DistributedContext.from_env(settings(case_of))
    whole = NETS["mlp4"](torch.float64)
    # every neuron is a row, and the same wrong numbers on all ranks where the method decides by them: no fault may hang
    ways: tuple[Way, ...] = ("ibp", "crown", "keep")
    one = {way: bound(whole, way, case_of, context.alone(), sparse=False) for way in ways}
    report = {}
    for fault in FAULTS:
        with planted(fault):
            mine = tensor_parallel(whole, context)
            x = samples(whole, torch.float64)
            far = distance(evaluate(mine, x), evaluate(whole, x))
            for way in ways if fault in ALIKE else ways[:2]:
                try:
                    here = bound(mine, way, case_of, context, sparse=False)
                except ContractError:  # on all ranks at once: they have found that they differ
                    far = math.inf
                    continue
                far = max(far, *(distance(here[k], one[way][k]) for k in one[way]))
        report[fault] = context.world.largest(far)
    context.close()
    return report


