"""What a round of a search says to other ranks and waits for from its own device: nobody notices one more of either."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from auto_LiRPA.parallel.context import DistributedContext
from complete_verifier.bab import rounds
from complete_verifier.bab.agreement import Status
from complete_verifier.bab.expansion import Expander
from complete_verifier.bab.rounds import Rounds
from complete_verifier.bab.schedule_free import FreeRunning
from complete_verifier.bab.store import DomainStore
from complete_verifier.bab.tiers.lane import Arriving

# Of a tensor on a GPU each of these waits for all that was queued before it.
READS = {"tolist", "item", "cpu", "numpy", "nonzero", "unique", "bincount", "masked_select", "equal", "allclose"}
READS |= {"__bool__", "__int__", "__float__", "__index__", "__contains__"}


@dataclass
class RoundCounts:
    """One round of a rank. ``waits``: reads of tensors by step (taking domains, sorting out, settling, telling, ...).

    ``steady``: it began and ended without waiting for others. ``collectives``: calls by kind; ``bytes``: of them all.
    ``worst``: the least bound of what is open, as the rank tells it and as its queue has it.
    """

    steady: bool = False
    waits: Counter[str] = field(default_factory=Counter)
    collectives: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    worst: tuple[float, float] = (0.0, 0.0)


class _Reads(TorchFunctionMode):
    """Counts reads in the step that is under way; bounding itself is left out: its iterations depend on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.now = "", RoundCounts()
        self.arrived: list[torch.Tensor] = []  # copies in host memory, which nobody waits for again

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if self.step and (name in READS or (name in ("__getitem__", "__setitem__") and _masks(args[1]))):
            if not any(args[0] is one for one in self.arrived):
                self.now.waits[self.step] += 1
        return func(*args, **(kwargs or {}))


def _masks(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in parts)


@contextmanager
def round_counts(context: DistributedContext, found: list[RoundCounts]) -> Iterator[None]:
    """Within: each round of a search appends its counts."""
    reads = _Reads()
    one_round, wait = Rounds._round, Arriving.wait

    def noted(self: Rounds[Any], *given: Any) -> Any:
        reads.now = RoundCounts(steady=self._flying is not None)
        before = _traffic(context)
        agreed = one_round(self, *given)
        reads.now.steady &= self._flying is not None
        after = _traffic(context)
        moved = {kind: (calls - before.get(kind, (0, 0))[0]) for kind, (calls, _) in after.items()}
        reads.now.collectives = {kind: calls for kind, calls in moved.items() if calls}
        reads.now.bytes = sum(size for _, size in after.values()) - sum(size for _, size in before.values())
        found.append(reads.now)
        return agreed

    def arrived(self: Arriving) -> Any:
        rows = wait(self)
        reads.arrived += rows
        return rows

    def told(self: Rounds[Any], store: DomainStore[Any], work: Any, tried: Any, *given: Any) -> Status:
        mine = status(self, store, work, tried, *given)
        left = None if self.apart or tried.value is None else tried.value.left
        margins = [] if left is None else left.lower.tolist()
        reads.now.worst = (mine.worst, min(store.worst_margin(), *margins, float("inf")))
        return mine

    def within(step: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            outer, reads.step = reads.step, step
            try:
                return original(*given, **named)
            finally:
                reads.step = outer

        return run

    steps: list[tuple[Any, str]] = [(FreeRunning, "pick"), (rounds, "tell"), (rounds, "carry_out")]
    steps += [(Expander, name) for name in ("sorted_out", "close_leaves")]
    steps += [(Rounds, name) for name in ("_worst_behind", "_settle", "_hear")]
    status = within("status", Rounds._status)
    with ExitStack() as stack:
        for owner, name in steps:
            stack.enter_context(mock.patch.object(owner, name, within(name.strip("_"), getattr(owner, name))))
        stack.enter_context(mock.patch.object(Rounds, "_status", told))
        stack.enter_context(mock.patch.object(Rounds, "_round", noted))
        stack.enter_context(mock.patch.object(Arriving, "wait", arrived))
        stack.enter_context(reads)
        yield


def _traffic(context: DistributedContext) -> dict[str, tuple[int, int]]:
    return {kind: (one.calls, one.bytes) for kind, one in context.counters.collectives.items()}
