"""Settings of the mixed-integer stages, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Formulation = Literal["mip", "lp", "lp_integer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MipSettings:
    """How programs are built and solved. The run's deadline is the clock's business."""

    processes: int | None = None  # solver processes side by side; None = one per core
    formulation: Formulation = "mip"  # lp: triangles; lp_integer: the same program with fractional binaries
    early_stop: bool = True  # a solve ends as soon as its sign is known
    skip_unsafe: bool = False  # points of the solver are never taken for counterexamples
    neuron_seconds: float = 15.0  # for one side of one neuron
    refine_share: float = 0.8  # of the run's time; refinement ends when so much of it has passed
    window: int = -1  # layers encoded before the one that is tightened; -1 = all
