"""Settings of the bound engine: plain frozen values, made at the door from bound_opts or YAML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

IntermAlpha = Literal["keep", "fixed", "stream"]
Reduction = Literal["sum", "mean", "min", "max"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaSettings:
    """One alpha-CROWN optimisation (DESIGN 5, interface 7.4)."""

    mode: IntermAlpha = "keep"  # what happens to the intermediate bounds: optimised jointly, fixed, or tile by tile
    iterations: int = 20  # bound evaluations; one Adam step fewer
    lr_alpha: float = 0.5
    lr_beta: float = 0.05
    decay: float = 0.98  # factor on both rates after every step
    patience: int = 10  # evaluations without any improvement before stopping
    start_save_best: float = 0.5  # share of the iterations after which slopes are kept beside the bounds
    reduction: Reduction = "sum"  # how the rows of one batch element become one objective
    share_alphas: bool = False  # one set of slopes per (node, intermediate start node) instead of one per row
    disabled: tuple[str, ...] = ()  # operator names (substrings, any case) whose relaxation is not optimised


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundSettings:
    """What every bounding call of one BoundedModule shares."""

    compare_with_ibp: bool = True  # intersect each CROWN bound with the interval bound (on here, off upstream)
    sparse_intermediate: bool = True  # bound only neurons that the interval bounds leave undecided
    forward_max_dim: int = 10_000  # input columns per chunk of forward mode
    wide_mib: float = 256.0  # a layer whose boxes take more is bounded block by block, if nobody wants its boxes
    alpha: AlphaSettings = AlphaSettings()
