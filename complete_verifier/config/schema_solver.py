"""Section `solver`: how bounds are computed and optimised."""

from __future__ import annotations

from typing import Annotated, Literal

from complete_verifier.config.kinds import (
    CHOICE,
    Bool,
    Choice,
    Count,
    Float,
    Natural,
    NonNegative,
    Positive,
    Texts,
)
from complete_verifier.config.schema_base import Section, option, section
from complete_verifier.config.schema_mip import Mip


def _forward_backward(word: str) -> str | None:
    """Shipped configurations call forward+crown by its older name."""
    return "forward+crown" if word == "forward+backward" else None


class Crown(Section):
    """Backward bound propagation."""

    batch_size: Count = option(1_000_000_000, "--crown_batch_size", "Most neurons bounded in one backward pass.")
    max_crown_size: Count = option(
        1_000_000_000, "--max_crown_size", "Bound only so many unstable neurons of a layer, the widest ones first."
    )
    activation_bound_option: Annotated[Literal["adaptive", "same-slope", "zero-lb", "one-lb"], CHOICE] = option(
        "adaptive", "--activation_bound_option", "Rule for the first slope below an unstable ReLU."
    )
    compare_crown_with_ibp: Bool = option(
        True,
        "--compare_crown_with_ibp",
        "Intersect CROWN's bounds with interval bounds (on here, off upstream).",
        sets=True,
        off_flag="--no_compare_crown_with_ibp",
    )


class AlphaCrown(Section):
    """Optimised slopes in the incomplete stage."""

    alpha: Bool = option(True, "--no_alpha", "Optimise slopes at all; read nowhere upstream.")
    lr_alpha: NonNegative = option(0.1, "--lr_init_alpha", "Adam's step size for alpha in the incomplete stage.")
    iteration: Natural = option(100, "--init_iteration", "Iterations of the incomplete stage.")
    share_alphas: Bool = option(
        False, "--share_alphas", "Let all neurons of a start node share one alpha per activation."
    )
    lr_decay: NonNegative = option(0.98, "--alpha_lr_decay", "Factor on the step size after each iteration.")
    full_conv_alpha: Bool = option(
        True, "--no_full_conv_alpha", "Give each position of a convolution its own alpha instead of one per channel."
    )
    max_coeff_mul: Positive = option(
        float("inf"), "--max_coeff_mul", "Cap on multiplication's parameters; read nowhere upstream."
    )
    matmul_share_alphas: Bool = option(
        False, "--matmul_share_alphas", "Share the relaxation's parameters within a matrix product."
    )
    disable_optimization: Texts = option(
        (), "--disable_optimization", "Operators, by part of their name, whose relaxation stays fixed."
    )
    max_time: NonNegative = option(1.0, "--init_max_time", "Share of bab.timeout that the incomplete stage may take.")
    alpha_dtype: Annotated[Literal["float16", "auto"], CHOICE] = option(
        "float16", "--alpha_dtype", "Precision in which alphas are kept for branch and bound."
    )
    input_split_alpha_iteration: Natural = option(
        5, "--input_split_alpha_iteration", "Alpha iterations in each round of input splitting."
    )
    input_split_lr_alpha: NonNegative = option(
        0.05, "--input_split_lr_alpha", "Step size of alpha in rounds of input splitting."
    )


class Invprop(Section):
    """Bounds of hidden layers under the assumption that the property is violated."""

    apply_output_constraints_to: Texts = option(
        (), "--apply_output_constraints_to", "Layers, by type or node name, bounded with the output constraints."
    )
    tighten_input_bounds: Bool = option(
        False, "--tighten_input_bounds", "Tighten the input box with the output constraints too."
    )
    best_of_oc_and_no_oc: Bool = option(
        False, "--best_of_oc_and_no_oc", "Intersect the bounds found with and without output constraints."
    )
    directly_optimize: Texts = option((), "--directly_optimize", "Layers whose own bounds are part of the loss.")
    oc_lr: NonNegative = option(0.1, "--oc_lr", "Step size of the output constraints' multipliers.")
    share_gammas: Bool = option(False, "--share_gammas", "One multiplier for all neurons of a layer.")


class BetaCrown(Section):
    """Optimised slopes and split multipliers in branch and bound."""

    lr_alpha: NonNegative = option(0.01, "--lr_alpha", "Adam's step size for alpha in branch and bound.")
    lr_beta: NonNegative = option(0.05, "--lr_beta", "Adam's step size for the multipliers of splits.")
    lr_decay: NonNegative = option(0.98, "--lr_decay", "Factor on both step sizes after each iteration.")
    optimizer: Annotated[Literal["adam", "adam-autolr", "sgd"], CHOICE] = option(
        "adam", "--optimizer", "Optimiser of alpha and beta."
    )
    iteration: Natural = option(50, "--iteration", "Iterations for each round of branch and bound.")
    beta: Bool = option(True, "--no_beta", "Use the multipliers of splits at all.")
    beta_warmup: Bool = option(True, "--no_beta_warmup", "Start from the parent's multipliers; read nowhere upstream.")
    enable_opt_interm_bounds: Bool = option(
        False, "--enable_opt_interm_bounds", "Optimise intermediate bounds during branch and bound."
    )
    all_node_split_LP: Bool = option(
        False, "--enable_all_node_split_LP", "Solve a linear program once every ReLU of a sub-problem is fixed."
    )


class Forward(Section):
    """Forward linear bounds."""

    refine: Bool = option(False, "--forward_refine", "Tighten forward bounds of unstable neurons by CROWN.")
    max_dim: Count = option(10000, "--forward_max_dim", "Most input columns carried forward at once.")
    reset_threshold: Float = option(
        1.0, "--reset_start_layer_threshold", "When dynamic forward bounds start afresh; read nowhere upstream."
    )


_METHODS = Literal[
    "alpha-crown",
    "crown",
    "forward",
    "forward+crown",
    "alpha-forward",
    "crown-ibp",
    "init-crown",
    "ibp",
    "dynamic-forward",
    "dynamic-forward+crown",
    "dynamic-forward+backward",
]
_FIRST_METHODS = Literal[
    "same", "alpha-crown", "crown", "forward", "forward+crown", "alpha-forward", "crown-ibp", "init-crown"
]


class Solver(Section):
    """Bounding, shared by the incomplete stage and branch and bound."""

    batch_size: Count = option(64, "--batch_size", "Sub-problems bounded together in one round.")
    auto_enlarge_batch_size: Bool = option(
        True, "--no_auto_enlarge_batch_size", "Let the batch grow while the device's memory allows it."
    )
    batched_crown_auto_enlarge_max_vram_ratio: NonNegative = option(
        0.9, "--batched_crown_auto_enlarge_max_vram_ratio", "Share of device memory up to which tiles may grow."
    )
    min_batch_size_ratio: NonNegative = option(
        0.1, "--min_batch_size_ratio", "Split several levels at once until this share of the batch is filled."
    )
    use_float64_in_last_iteration: Bool = option(
        False, "--use_float64_in_last_iteration", "Do the last iteration in float64 with directed rounding."
    )
    early_stop_patience: Natural = option(
        10, "--early_stop_patience", "Iterations without progress before an optimisation stops."
    )
    start_save_best: Float = option(
        0.5, "--start_save_best", "Share of the iterations after which best values are kept; -1 keeps them always."
    )
    bound_prop_method: Annotated[_METHODS, Choice(_forward_backward)] = option(
        "alpha-crown", "--bound_prop_method", "How the incomplete stage and input splitting compute bounds."
    )
    init_bound_prop_method: Annotated[_FIRST_METHODS, Choice(_forward_backward)] = option(
        "same", "--init_bound_prop_method", "How input splitting bounds its root if the incomplete stage was off."
    )
    prune_after_crown: Bool = option(
        True, "--no_prune_after_crown", "Leave out of alpha-CROWN what plain CROWN has proved."
    )
    optimize_disjuncts_separately: Bool = option(
        False, "--optimize_disjuncts_separately", "Give every clause of the property its own intermediate bounds."
    )
    build_batch_size: Count = option(
        1_000_000, "--build_batch_size", "Most rows of the property bounded together at the start."
    )
    skip_with_refined_bound: Bool = option(
        True, "--no_skip_with_refined_bound", "Start branch and bound from the incomplete stage's bounds."
    )
    forward_before_compute_bounds: Bool = option(
        False, "--forward_before_compute_bounds", "Run the plain network before each computation of bounds."
    )
    crown: Crown = section(Crown)
    alpha_crown: AlphaCrown = section(AlphaCrown, "alpha-crown")
    invprop: Invprop = section(Invprop)
    beta_crown: BetaCrown = section(BetaCrown, "beta-crown")
    forward: Forward = section(Forward)
    mip: Mip = section(Mip)
