"""Section `bab.branching`: which neuron or input dimension is split next."""

from __future__ import annotations

from typing import Annotated, Literal

from complete_verifier.config.kinds import (
    CHOICE,
    Bool,
    Count,
    Float,
    Natural,
    NonNegative,
    OptFloat,
    OptFloats,
    OptNatural,
    OptText,
    Text,
    Texts,
    WholeOrInf,
)
from complete_verifier.config.schema_base import Section, option, section


class BranchingPoint(Section):
    """The table of precomputed points at which nonlinear functions are split."""

    db_path: Text = option("branching_points.pt", "--branching_point_db", "File of the table.")
    num_iterations: Natural = option(1000, "--branching_point_num_iterations", "Iterations spent on each entry.")
    batch_size: Count = option(1_000_000, "--branching_point_batch_size", "Entries computed together.")
    range_l: Float = option(-5.0, "--branching_point_range_l", "Smallest lower end of an interval in the table.")
    range_u: Float = option(5.0, "--branching_point_range_u", "Largest upper end of an interval in the table.")
    log_interval: Natural = option(100, "--branching_point_log_interval", "Iterations between two log lines.")
    step_size_1d: NonNegative = option(
        0.01, "--branching_point_step_size_1d", "Spacing of the table for functions of one variable."
    )
    step_size: NonNegative = option(
        0.2, "--branching_point_step_size", "Spacing of the table for functions of several variables."
    )


class NonlinearSplit(Section):
    """Splits of neurons other than ReLU."""

    method: Annotated[Literal["bbps", "babsr-like"], CHOICE] = option(
        "bbps", "--nonlinear_split_method", "Score of a nonlinear neuron."
    )
    disable: Bool = option(
        False, "--disable_nonlinear_split", "Keep the chosen heuristic even if other neurons could be split."
    )
    branching_point_method: Annotated[Literal["uniform", "opt"], CHOICE] = option(
        "uniform", "--branching_point_method", "Cut intervals evenly, or at points from a table."
    )
    num_branches: Count = option(2, "--nonlinear_branches", "Children of one split.")
    filter: Bool = option(False, "--nonlinear_split_filtering", "Rank the best candidates again by real bounds.")
    filter_beta: Bool = option(False, "--nonlinear_split_filtering_beta", "Use beta in that ranking.")
    filter_clamp: Bool = option(False, "--nonlinear_split_filtering_clamp", "Cut scores off at zero there.")
    filter_batch_size: Count = option(10000, "--filter_batch_size", "Batch of that ranking.")
    filter_iterations: Natural = option(25, "--filter_iterations", "Iterations of that ranking.")
    relu_only: Bool = option(False, "--nonlinear_split_relu_only", "Split ReLUs only.")
    loose_tanh_threshold: OptFloat = option(
        None, "--loose_tanh_threshold", "Width from which tanh and sigmoid get another relaxation."
    )
    branching_point: BranchingPoint = section(BranchingPoint)


class InputSplit(Section):
    """Branch and bound on the input box."""

    split_hint: OptFloats = option(
        None, "--split_hint", "Where to cut a dimension if the value lies inside; one value serves for all."
    )
    enable: Bool = option(False, "--enable_input_split", "Split the input box instead of neurons.")
    reorder_bab: Bool = option(
        False, "--reorder_bab", "Bound and filter before splitting and clipping, with a doubled batch."
    )
    input_dim_threshold: Natural = option(
        20, "--input_split_input_dim_threshold", "Most input dimensions for which auto chooses input splitting."
    )
    adv_check: WholeOrInf = option(
        0, "--input_split_adv_check", "Boxes visited before attacks start in the search; -1 or .inf never attacks."
    )
    split_partitions: Count = option(2, "--input_split_partitions", "Children of one cut.")
    sb_margin_weight: Float = option(1.0, "--sb_margin_weight", "Weight of the margin in the sb score.")
    sb_sum: Bool = option(False, "--sb_sum", "Add the sb score up over rows instead of taking the largest.")
    sb_primary_spec: OptNatural = option(None, "--sb_primary_spec", "Score this row only.")
    bf_backup_thresh: Float = option(-1.0, "--bf_backup_thresh", "Score below which brute force gives way.")
    bf_rhs_offset: Float = option(0.0, "--bf_rhs_offset", "Added to the right-hand side while brute force scores.")
    bf_iters: WholeOrInf = option(1_000_000_000, "--bf_iters", "Rounds in which brute force is used.")
    bf_batch_size: Count = option(100_000, "--bf_batch_size", "Batch of brute force.")
    bf_zero_crossing_score: Bool = option(
        False, "--bf_zero_crossing_score", "Let brute force favour boxes that contain zero."
    )
    touch_zero_score: Float = option(0.0, "--touch_zero_score", "Bonus for dimensions of boxes that touch zero.")
    ibp_enhancement: Bool = option(
        True, "--no_ibp_enhancement", "Compute interval bounds first and intersect with them."
    )
    compare_with_old_bounds: Bool = option(
        True, "--no_compare_input_split_with_old_bounds", "Never let a child's bound be worse than its parent's."
    )
    update_rhs_with_attack: Bool = option(
        False, "--input_split_update_rhs_with_attack", "Lower the right-hand side to what an attack reached."
    )
    sb_coeff_thresh: NonNegative = option(0.001, "--sb_coeff_thresh", "Smallest coefficient used by the sb score.")
    sort_index: OptNatural = option(None, "--input_split_sort_index", "Row by which open boxes are sorted.")
    sort_descending: Bool = option(True, "--no_input_split_sort_descending", "Direction of that sorting.")
    show_progress: Bool = option(False, "--input_split_show_progress", "Log which share of the volume is done.")
    presplit_domains: OptText = option(None, "--input_split_presplit_domains", "File of boxes to start from.")
    skip_getting_worst_domain: Bool = option(
        False, "--input_split_skip_getting_worst_domain", "Save the time of finding the worst box for the log."
    )


_METHODS = Literal[
    "babsr",
    "fsb",
    "kfsb",
    "kfsb-intercept-only",
    "random",
    "intercept",
    "naive",
    "sb",
    "nonlinear",
    "brute-force",
]


class Branching(Section):
    """Choice of splits."""

    method: Annotated[_METHODS, CHOICE] = option("kfsb", "--branching_method", "Heuristic that picks the next split.")
    candidates: Count = option(3, "--branching_candidates", "Candidates that look-ahead heuristics bound.")
    reduceop: Annotated[Literal["min", "max", "mean", "auto"], CHOICE] = option(
        "min", "--branching_reduceop", "How the two children's bounds become one score."
    )
    enable_intermediate_bound_opt: Bool = option(
        False, "--enable_intermediate_bound_opt", "Optimise intermediate bounds while scoring; read nowhere upstream."
    )
    branching_input_and_activation: Bool = option(
        False, "--branching_input_and_activation", "Alternate between splits of the input and of neurons."
    )
    branching_input_and_activation_order: Texts = option(
        ("input", "relu"), "--branching_input_and_activation_order", "Which of the two comes first."
    )
    branching_input_iterations: Natural = option(
        30, "--branching_input_iterations", "Rounds of input splits in such an alternation."
    )
    branching_relu_iterations: Natural = option(
        50, "--branching_relu_iterations", "Rounds of neuron splits in such an alternation."
    )
    nonlinear_split: NonlinearSplit = section(NonlinearSplit)
    input_split: InputSplit = section(InputSplit)
