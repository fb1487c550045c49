"""What a pass's memory is used for: bytes of the tensors alive at its most, by their form.

Counted in a pass of its own, which is not timed: every tensor that an operation makes counts until it is freed. With
one input per network (batch 1) a tensor with two long axes has a row for each row of a tile: a matrix of linear
coefficients, A; one long axis are bounds, lines and biases of neurons. Plain CROWN has no slopes (alpha).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.meter import Meter
from auto_LiRPA.parallel.recording import NoRecorder
from auto_LiRPA.parallel.store import ParameterStore
from benchmarks.parallel import measuring

MIB = measuring.MIB


class _Forms(Meter):
    """Also notes what was alive at the highest count, by form."""

    def __init__(self) -> None:
        super().__init__()
        self.at_peak = {"A": 0, "bounds": 0}
        self._now = {"A": 0, "bounds": 0}
        self._forms: dict[int, str] = {}

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, peak = storage._cdata, self.peak
        if key not in self._sizes and storage.nbytes():
            self._forms[key] = "A" if sum(size > 1 for size in tensor.shape) > 1 else "bounds"
            self._now[self._forms[key]] += storage.nbytes()
        super()._track(tensor)
        if self.peak > peak:
            self.at_peak = dict(self._now)

    def _free(self, key: int) -> None:
        size = self._sizes.get(key, 0)
        super()._free(key)
        form = self._forms.pop(key, None)
        if form is not None:
            self._now[form] -= size


def parts(
    context: DistributedContext,
    run: Callable[[DistributedContext], object],
    store: ParameterStore,
    peak_mib: float | None,
) -> dict[str, float]:
    """MiB of this rank: weights, gathered blocks, A, alpha, bounds; with a measured peak also the rest of that."""
    kept = 0 if context.mode == "offload" else store.weight_bytes()  # offload keeps them in the host's memory
    run(context)  # buffers exist
    slots = [slot.memory for slot in context.buffers._slots if slot.memory is not None]
    with _Forms() as forms:
        run(replace(context, recorder=NoRecorder()))
    found = {
        "weights": kept / MIB,
        "gathered": measuring.storage_bytes(slots) / MIB,
        "A": forms.at_peak["A"] / MIB,
        "alpha": 0.0,
        "bounds": forms.at_peak["bounds"] / MIB,
    }
    if peak_mib is not None:
        found["rest"] = max(0.0, peak_mib - sum(found.values()))
    return {name: round(size, 3) for name, size in found.items()}
