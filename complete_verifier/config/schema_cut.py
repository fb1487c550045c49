"""Section `bab.cut`: cutting planes (GCP-CROWN, BICCOS)."""

from __future__ import annotations

from typing import Annotated, Literal

from complete_verifier.config.kinds import CHOICE, Bool, CountOrNone, Natural, NonNegative, OptText
from complete_verifier.config.schema_base import Section, option, section


class MultiTree(Section):
    """Several shallow trees searched before the main one."""

    enabled: Bool = option(False, "--multi_tree_branching", "Search several trees first to collect cuts.")
    restore_best_tree: Bool = option(
        True, "--multi_tree_branching_disable_restore_best_tree", "Go on with the best of these trees."
    )
    keep_n_best_domains: Natural = option(
        50, "--multi_tree_branching_keep_n_best_domains", "Sub-problems kept in each step."
    )
    target_batch_size: Natural = option(
        200, "--multi_tree_branching_target_batch_size", "Sub-problems bounded in each step."
    )
    iterations: Natural = option(3, "--multi_tree_branching_iterations", "Rounds spent on these trees.")


class Biccos(Section):
    """Cuts inferred from sub-problems that were proved."""

    enabled: Bool = option(False, "--biccos_cuts", "Infer cuts from proved sub-problems.")
    auto_param: Bool = option(True, "--biccos_disable_auto_param", "Choose the settings below automatically.")
    constraint_strengthening: Bool = option(
        True, "--biccos_no_constraint_strengthening", "Drop neurons from a cut while it stays valid."
    )
    drop_ratio: NonNegative = option(0.5, "--biccos_drop_ratio", "Share of neurons dropped at a time.")
    max_infer_iter: Natural = option(20, "--biccos_max_infer_iter", "Rounds in which cuts are inferred.")
    max_domain: Natural = option(10000, "--biccos_max_domain", "Sub-problems considered at most.")
    heuristic: Annotated[Literal["neuron_influence_score", "random_drop", "sparse_opt"] | None, CHOICE] = option(
        "neuron_influence_score", "--biccos_dropping_heuristics", "Which neurons are dropped first."
    )
    save_cuts: Bool = option(False, "--biccos_save_cuts", "Write the cuts to a file.")
    multi_tree_branching: MultiTree = section(MultiTree)


class Cut(Section):
    """Cutting planes in branch and bound."""

    enabled: Bool = option(False, "--enable_cut", "Use cutting planes.")
    cuts_path: OptText = option(None, "--cuts_path", "Folder for files of cuts; null takes a temporary one.")
    bab_cut: Bool = option(False, "--enable_bab_cut", "Optimise the cuts' multipliers in branch and bound.")
    lp_cut: Bool = option(False, "--enable_lp_cut", "Use cuts in linear programs (for debugging).")
    lr: NonNegative = option(0.01, "--lr_cuts", "Step size of the cuts.")
    lr_decay: NonNegative = option(1.0, "--cut_lr_decay", "Factor on that step size after each iteration.")
    iteration: Natural = option(100, "--cut_iteration", "Iterations with cuts before branch and bound.")
    bab_iteration: CountOrNone = option(
        -1, "--cut_bab_iteration", "Iterations with cuts in each round; -1 takes the number used without cuts."
    )
    early_stop_patience: CountOrNone = option(
        -1, "--cut_early_stop_patience", "Iterations without progress tolerated with cuts; -1 inherits the solver's."
    )
    lr_beta: NonNegative = option(0.02, "--cut_lr_beta", "Step size of the cuts' multipliers.")
    number_cuts: Natural = option(50, "--number_cuts", "Most cuts added.")
    topk_cuts_in_filter: Natural = option(1000, "--topk_implication", "Cuts left by the filter; read nowhere upstream.")
    batch_size_primal: Natural = option(
        100, "--batch_size_primal", "Batch for primal solutions; read nowhere upstream."
    )
    max_num: Natural = option(1_000_000_000, "--cut_max_num", "Most cuts in total; read nowhere upstream.")
    patches_cut: Bool = option(False, "--enable_patches_cut", "Allow cuts where convolutions are held as windows.")
    cplex_cuts: Bool = option(False, "--cplex_cuts", "Take cuts from a CPLEX process.")
    cplex_cuts_wait: NonNegative = option(0.0, "--cplex_cuts_wait", "Seconds to wait for its first cuts.")
    cplex_cuts_revpickup: Bool = option(
        True, "--no_cplex_cuts_revpickup", "Take the worst sub-problems first while its cuts arrive."
    )
    cut_reference_bounds: Bool = option(
        True, "--no_cut_reference_bounds", "Use reference bounds with cuts; read nowhere upstream."
    )
    fix_intermediate_bounds: Bool = option(
        False, "--fix_cut_intermediate_bounds", "Freeze intermediate bounds with cuts; read nowhere upstream."
    )
    manual_cuts: OptText = option(None, "--manual_cuts", "File with hand-written cuts.")
    biccos: Biccos = section(Biccos)
