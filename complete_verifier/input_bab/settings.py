"""Settings of branch and bound on the input box, as plain values, and how a search ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

BoundMethod = Literal["crown", "forward+crown", "alpha-crown", "ibp", "crown-ibp", "forward"]
SplitMethod = Literal["naive", "sb", "brute-force"]
SPLIT_METHODS: tuple[SplitMethod, ...] = ("naive", "sb", "brute-force")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSettings:
    """How the dimension to cut is chosen (interface 7.8)."""

    method: SplitMethod = "sb"
    coeff_thresh: float = 0.001  # smallest coefficient that counts
    margin_weight: float = 1.0
    sum_rows: bool = False  # add the rows' scores up instead of taking the largest
    primary_row: int | None = None  # score this row of a clause only
    touch_zero: float = 0.0  # bonus, times the width, for dimensions whose interval touches 0
    # brute force: these many best dimensions by sb, and the widest one, are tried
    candidates: int = 1_000_000
    bf_backup_thresh: float = -1.0  # a best gain below this leaves the choice to sb
    bf_rhs_offset: float = 0.0  # added to right-hand sides while dimensions are tried
    bf_rounds: float = math.inf  # rounds after which sb chooses
    bf_batch_size: int = 100_000  # children bounded together
    bf_zero_crossing: bool = False  # favour dimensions whose interval contains 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSettings:
    """Shrinking of boxes by the linear bounds that a counterexample has to satisfy."""

    enabled: bool = False
    complete: bool = False  # use them in every concretisation as well
    iterations: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """Attacks within the search."""

    enabled: bool = True
    from_visited: float = 0  # boxes visited before the first one; inf: never
    boxes: int = 10  # worst boxes attacked; the newest is added


@dataclass(frozen=True, slots=True, kw_only=True)
class InputBabSettings:
    """One input-split search. Times are the clock's business."""

    bound_method: BoundMethod = "crown"
    batch_size: int = 64  # boxes taken up in a round
    min_batch_ratio: float = 0.1  # cut several dimensions at once until this share of the batch is filled
    reorder: bool = False  # take up, bound, cut, store (doubled batch) instead of take up, cut, bound, store
    partitions: int = 2  # children of one cut
    hint: tuple[float, ...] | None = None  # where to cut, if inside: one value per dimension, or one for all
    ibp_enhancement: bool = True  # intervals first; what they prove is not bounded again
    compare_with_old: bool = True  # a child's bound is never worse than its parent's
    alpha_iterations: int = 5
    alpha_lr: float = 0.05
    max_iterations: int = -1  # rounds; -1: no limit. Reaching it is `unknown`, never `unsat`
    max_domains: float = math.inf
    traversal: Literal["worst_first", "depth_first", "breadth_first"] = "worst_first"
    score: ScoreSettings = ScoreSettings()
    clip: ClipSettings = ClipSettings()
    check: CheckSettings = CheckSettings()
    first_attack: bool = False  # attack the boxes of the first round (``attack.input_split``)
    show_volume: bool = False  # tell which share of the volume is closed
    synchronous: bool = False  # the same tree for every number of ranks: nothing is sized or stopped by time or memory
    record_leaves: bool = False


@dataclass(frozen=True, slots=True)
class InputBabProgress:
    """Where a search stands after a round. ``closed_volume``: share of the open clauses' boxes, if asked for."""

    round: int
    domains_open: int
    domains_visited: int
    worst_bound: float
    seconds: float
    closed_volume: float | None = None


@dataclass(frozen=True, slots=True)
class Leaf:
    """One box ``[m]`` in which a clause (of the problem) was refuted."""

    clause: int
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True, slots=True)
class InputBabResult:
    """How a search ended. ``closed``: every clause is refuted on boxes that cover its region."""

    closed: bool
    stopped_by: str
    domains_visited: int
    rounds: int
    worst_bound: float
    seconds: float
    leaves: tuple[Leaf, ...] = field(default=(), repr=False)
