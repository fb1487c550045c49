"""Settings of branch and bound, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    reduceop: Literal["min", "max", "mean"] = "min"
    candidates: int = 3
    traversal: Literal["worst_first", "depth_first", "breadth_first"] = "worst_first"
    auto_enlarge: bool = True
    pruning_in_iteration: bool = True
    record_ledger: bool = False


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
