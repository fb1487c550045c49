"""Settings of branch and bound, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from complete_verifier.bab.clip import ClipSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class BabSettings:
    """One activation-split search. Times are the clock's business."""

    batch_size: int = 64  # parents picked per round; each has two children (or more on the first levels)
    min_batch_ratio: float = 0.1  # split several levels at once until this share of the batch is filled
    max_iterations: int = -1  # rounds; -1 = no limit. Reaching it is `unknown`, never `unsat`
    max_domains: float = float("inf")
    iterations: int = 50  # alpha/beta iterations per round
    lr_alpha: float = 0.01
    lr_beta: float = 0.05
    decay: float = 0.98
    patience: int = 10
    start_save_best: float = 0.5
    method: str = "kfsb"
    reduceop: Literal["min", "max", "mean", "auto"] = "min"
    candidates: int = 3
    seed: int = 100
    traversal: Literal["worst_first", "depth_first", "breadth_first"] = "worst_first"
    auto_enlarge: bool = True
    enlarge_vram_ratio: float = 0.9
    pruning_in_iteration: bool = True
    pruning_ratio: float = 0.2
    # every round does the same work on any number of ranks: no early end, no pruning, no sizing of batches
    synchronous: bool = False
    half_variables: bool = True  # alphas and betas rest as float16 between rounds (sound: any value in range is)
    clip: ClipSettings | None = None  # tighten the boxes of each domain by what its splits say about the input
    record_ledger: bool = False
    # inputs of curves and products are split too, where the network has any (bab/nonlinear_search.py)
    nonlinear: bool = False


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a batch of domains is cut: at most ``height`` at a time; ``graphs``: as captured CUDA graphs where it can."""

    height: int
    graphs: bool


@dataclass(frozen=True, slots=True)
class BabResult:
    """How a search ended. ``closed``: every leaf of the tree was proved, so no counterexample exists."""

    closed: bool
    stopped_by: str
    domains_visited: int
    rounds: int
    worst_bound: float
    seconds: float


@dataclass(frozen=True, slots=True)
class BabProgress:
    """Where a search stands after a round, for the progress display."""

    round: int
    domains_open: int
    domains_visited: int
    worst_bound: float
    seconds: float
