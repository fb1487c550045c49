"""Section `bab`: branch and bound, its limits and its schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from complete_verifier.config.kinds import (
    CHOICE,
    Bool,
    CountOrNone,
    Float,
    Natural,
    NonNegative,
    OptFloat,
    OptPositive,
    Positive,
    Text,
    WholeOrInf,
)
from complete_verifier.config.schema_base import Section, option, section
from complete_verifier.config.schema_branching import Branching
from complete_verifier.config.schema_clip import ClipNVerify
from complete_verifier.config.schema_cut import Cut


class BabAttack(Section):
    """Attack that searches with the branch-and-bound tree."""

    enabled: Bool = option(False, "--enable_bab_attack", "Search for counterexamples in the tree.")
    beam_candidates: Natural = option(8, "--beam_candidates_number", "Candidates kept at each step of the beam.")
    beam_depth: Natural = option(7, "--beam_split_depth", "Splits that the beam looks ahead.")
    max_dive_fix_ratio: NonNegative = option(0.8, "--max_dive_fix_ratio", "Largest share of neurons fixed in a dive.")
    min_local_free_ratio: NonNegative = option(
        0.2, "--min_local_free_ratio", "Smallest share of neurons left free in a local search."
    )
    mip_start_iteration: Natural = option(5, "--submip_start_iteration", "Round in which small MIPs start.")
    mip_timeout: NonNegative = option(30.0, "--submip_timeout", "Seconds for one small MIP.")
    adv_pool_threshold: OptFloat = option(None, "--adv_pool_threshold", "Margin below which a point is kept.")
    refined_mip_attacker: Bool = option(False, "--refined_mip_attacker", "Attack through MIPs with tightened neurons.")
    refined_batch_size: OptPositive = option(None, "--refined_batch_size", "Batch for that attack.")


class Refine(Section):
    """Tightening hidden neurons' bounds by small searches of their own, between an attempt and the search (ours)."""

    enabled: Bool = option(False, "--enable_refine", "Tighten the bounds of hidden neurons by branch and bound first.")
    attempt: NonNegative = option(0.15, "--refine_attempt", "Share of the time left for an attempt without it.")
    share: NonNegative = option(0.4, "--refine_share", "Share of the time left then that the refinement may take.")


class Bab(Section):
    """Branch and bound."""

    max_domains: WholeOrInf = option(
        float("inf"), "--max_domains", "Open sub-problems beyond which the run ends undecided."
    )
    decision_thresh: Float = option(
        0.0, "--decision_thresh", "Bound that a data set's margins have to exceed to count as proved."
    )
    timeout: Positive = option(360.0, "--timeout", "Seconds for one instance; a list's third column takes precedence.")
    timeout_scale: Positive = option(1.0, "--timeout_scale", "Factor on that time.")
    max_iterations: CountOrNone = option(-1, "--max_iterations", "Most rounds; -1 sets no limit.")
    override_timeout: OptPositive = option(
        None, "--override_timeout", "Seconds that replace every other source of the timeout."
    )
    get_upper_bound: Bool = option(False, "--get_upper_bound", "Also compute an upper bound for each sub-problem.")
    pruning_in_iteration: Bool = option(
        True, "--disable_pruning_in_iteration", "Drop proved sub-problems in the middle of an optimisation."
    )
    pruning_in_iteration_ratio: NonNegative = option(
        0.2, "--pruning_in_iteration_ratio", "Proved share of a batch from which such dropping starts."
    )
    sort_targets: Bool = option(False, "--sort_targets", "Order targets by difficulty; without effect upstream.")
    batched_domain_list: Bool = option(
        True, "--disable_batched_domain_list", "Hold sub-problems in batches; without effect upstream."
    )
    optimized_interm: Text = option(
        "", "--optimized_interm", "Layers, separated by commas, whose bounds are optimised again in every round."
    )
    interm_transfer: Bool = option(
        True, "--no_interm_transfer", "Keep intermediate bounds per sub-problem instead of rebuilding them from splits."
    )
    recompute_interm: Bool = option(False, "--recompute_interm", "Compute all intermediate bounds anew in every round.")
    sort_domain_interval: CountOrNone = option(
        -1, "--sort_domain_interval", "Rounds between two sortings of the open sub-problems; -1 never sorts."
    )
    vanilla_crown: Bool = option(False, "--vanilla_crown_bab", "Bound by plain CROWN, without alpha and beta.")
    tree_traversal: Annotated[Literal["depth_first", "breadth_first"] | None, CHOICE] = option(
        None,
        "--tree_traversal",
        "Order in which sub-problems are taken; null takes the worst bound first (upstream: depth_first).",
    )
    hugetensor_allocator: Bool = option(
        True, "--disable_hugetensor_allocator", "Reserve address space for large stores of sub-problems."
    )
    force_synchronous: Bool = option(
        False, "--force_synchronous", "Explore the same tree round by round for every number of ranks."
    )
    domain_parallel: Bool = option(
        False, "--domain_parallel", "Share sub-problems out over ranks (older spelling of parallel.domains: shard)."
    )
    checkpoint: OptPositive = option(
        None, "--checkpoint_seconds", "Seconds between two checkpoints; null: 60 with --checkpoint, else none."
    )
    refine: Refine = section(Refine)
    cut: Cut = section(Cut)
    clip_n_verify: ClipNVerify = section(ClipNVerify)
    branching: Branching = section(Branching)
    attack: BabAttack = section(BabAttack)
