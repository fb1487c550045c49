"""Which options act, which only steer the search and are passed over with a warning, and which are refused.

The key is an option's path or the path of a section, which speaks for all options below it that have no line of their
own. A flag without a YAML key is listed by its flag. When a feature lands, change its line here and run
`python -m complete_verifier.config.pages`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class Status(Enum):
    """What happens with a value that is not the default."""

    ACTS = "acts"
    STEERS = "steers"  # passed over with a warning: it changes the way, not the question
    REFUSED = "refused"  # an error: it would change what is asked


@dataclass(frozen=True, slots=True)
class Support:
    """How far an option is supported.

    `acting` are values that act although the status says otherwise. With `even_default`, giving the default value
    explicitly counts like any other value. `hooks` says that user code, Customized(...), is called.
    """

    status: Status
    reason: str = ""
    acting: tuple[object, ...] = ()
    even_default: bool = False
    hooks: bool = False


def _steers(reason: str, *acting: object, even_default: bool = False, hooks: bool = False) -> Support:
    return Support(Status.STEERS, reason, acting, even_default, hooks)


def _refused(reason: str, *acting: object) -> Support:
    return Support(Status.REFUSED, reason, acting)


_ACTS = Support(Status.ACTS)
_INERT = _steers("it has no effect in upstream either")
_USER_CODE = _refused("user code is not called here")
_HOOK = Support(Status.ACTS, hooks=True)
# Shipped passes that keep the function: reading the graph does what they did.
_OLD_PASSES = tuple(
    f"Customized({quote}custom_graph_optimizer{quote}, {quote}{name}{quote})"
    for name in ("default_optimizer", "maxpool_to_relu", "merge_sign", "merge_relu_lookup_table")
    for quote in ('"', "'")
)
_ONE_KIND = _steers("a run splits the input or neurons, not both")

SUPPORT: Mapping[str, Support] = MappingProxyType(
    {
        # -- general -------------------------------------------------------------------------------------------
        "general": _ACTS,
        "general.conv_mode": _steers("the form of coefficients is chosen by the engine", "matrix"),
        "general.sparse_alpha": _steers("alpha is always kept for unstable neurons only"),
        "general.eval_adv_example": _steers("there is no external checker; onnxruntime confirms each counterexample"),
        "general.onnx_adv_example": _steers("outputs in a counterexample are onnxruntime's already"),
        "general.show_adv_example": _steers("the counterexample goes to the results file"),
        "general.complete_verifier": _steers(
            "branch and bound is used instead", "bab", "skip", "auto", "mip", "bab-refine", hooks=True
        ),
        "general.deterministic_opt": _steers("alphas are kept with the bounds they gave"),
        "general.graph_optimizer": _refused("graphs are rewritten while they are read, not by user code", *_OLD_PASSES),
        "general.buffer_has_batchdim": _refused("constants never have a batch axis here"),
        "general.return_optimized_model": _refused("use BoundedModule from Python"),
        "general.store_all_specs_on_cpu": _steers("rows of the property live on the device"),
        "general.adhoc_tuning": _HOOK,
        # -- model ---------------------------------------------------------------------------------------------
        "model": _ACTS,
        "model.name": _HOOK,
        "model.cache_onnx_conversion": _steers("reading a network is fast enough without a cache"),
        "model.debug_onnx": _steers("there is no conversion to compare"),
        "model.onnx_quirks": _refused(
            "only the quirk that frees a frozen batch size is known", "{'Reshape': {'fix_batch_size': True}}"
        ),
        "model.onnx_loader": _HOOK,
        # The flags listed here keep the function that the network computes; reading the graph does what they did.
        "model.onnx_optimization_flags": _refused(
            "this rewriting changes the network",
            "merge_bn",
            "merge_linear",
            "merge_gemm",
            "merge_gemm_reshape_bn",
            "merge_bn_reshape_gemm",
            "merge_vit",
            "remove_ineffective_layers",
            "remove_matmul_inplace",
            "check_duplicate_upsample_initializers",
        ),
        "model.check_optimized": _steers("there is no rewritten file to compare with"),
        "model.optimize_graph": _USER_CODE,
        "model.with_jacobian": _refused("Jacobians are not bounded here"),
        # -- data: an instance list is run; mean, std and num_outputs are read with a data set only ------------
        "data": _ACTS,
        "data.dataset": _HOOK,
        "data.data_filter_path": _refused("no filter is read, neither here nor upstream"),
        # -- specification -------------------------------------------------------------------------------------
        "specification": _ACTS,
        "specification.epsilon_min": _refused("a range of radii is not checked, neither here nor upstream"),
        # -- solver --------------------------------------------------------------------------------------------
        "solver": _ACTS,
        "solver.batched_crown_auto_enlarge_max_vram_ratio": _steers("tiles keep their size"),
        "solver.use_float64_in_last_iteration": _steers("general.double_fp computes everything in float64"),
        "solver.bound_prop_method": _steers(
            "alpha-crown is used instead",
            *("alpha-crown", "crown", "crown-ibp", "ibp", "init-crown", "forward", "forward+crown"),
        ),
        "solver.init_bound_prop_method": _steers("the first boxes are bounded by solver.bound_prop_method", "same"),
        "solver.optimize_disjuncts_separately": _steers("clauses share intermediate bounds where their boxes agree"),
        "solver.skip_with_refined_bound": _steers("the search always starts from the incomplete stage's bounds"),
        "solver.forward_before_compute_bounds": _steers("bounds do not depend on an earlier forward pass"),
        "solver.crown.batch_size": _steers("parallel.tile_rows sets how many rows are bounded together"),
        "solver.crown.max_crown_size": _steers("all unstable neurons are bounded"),
        "solver.crown.activation_bound_option": _steers("the adaptive slope is used"),
        "solver.alpha-crown.alpha": _INERT,
        "solver.alpha-crown.full_conv_alpha": _steers("alphas are not shared"),
        "solver.alpha-crown.max_coeff_mul": _INERT,
        "solver.alpha-crown.matmul_share_alphas": _steers("alphas are not shared"),
        "solver.invprop": _steers("output constraints are not used for hidden layers"),
        "solver.beta-crown.optimizer": _steers("Adam is used"),
        "solver.beta-crown.beta": _steers("beta is always used"),
        "solver.beta-crown.beta_warmup": _INERT,
        "solver.beta-crown.enable_opt_interm_bounds": _steers("sub-problems inherit their intermediate bounds"),
        "solver.beta-crown.all_node_split_LP": _steers("such sub-problems are always decided by an LP"),
        "solver.forward": _steers("forward bounds have no settings"),
        "solver.forward.reset_threshold": _INERT,
        "solver.mip": _ACTS,
        "solver.mip.unstable_neuron_threshold": _INERT,
        "solver.mip.solver_threads": _steers("HiGHS chooses its threads; parallel_solvers sets the processes"),
        "solver.mip.adv_warmup": _steers("HiGHS is not given a starting point"),
        "solver.mip.mip_solver": _steers("HiGHS solves every program; no licence is needed", even_default=True),
        "solver.mip.topk_filter": _INERT,
        "solver.mip.extra_constraint": _steers("a window of layers starts from boxes alone"),
        "solver.mip.refine_neuron_timeout_increasement": _steers("every neuron has refine_neuron_timeout"),
        "solver.mip.timeout_neuron_percentage": _steers("every neuron has refine_neuron_timeout"),
        "solver.mip.remaining_timeout_threshold": _steers("every neuron has refine_neuron_timeout"),
        "solver.mip.remove_unstable_neurons": _steers("all unstable neurons are refined, nearest to stable first"),
        "solver.mip.output_cut": _INERT,
        # -- bab -----------------------------------------------------------------------------------------------
        "bab": _ACTS,
        "bab.max_domains": _ACTS,
        "bab.get_upper_bound": _steers("upper bounds are not needed for a verdict"),
        "bab.sort_targets": _INERT,
        "bab.batched_domain_list": _INERT,
        "bab.optimized_interm": _steers("sub-problems inherit their intermediate bounds"),
        "bab.interm_transfer": _steers("intermediate bounds are kept per sub-problem"),
        "bab.recompute_interm": _steers("sub-problems inherit their intermediate bounds"),
        "bab.sort_domain_interval": _steers("the worst sub-problems always come first"),
        "bab.tree_traversal": _ACTS,
        "bab.hugetensor_allocator": _steers("the store allocates what it needs"),
        "bab.domain_parallel": _ACTS,
        "bab.cut": _steers("cutting planes are not used; the search goes on without"),
        "bab.cut.topk_cuts_in_filter": _INERT,
        "bab.cut.batch_size_primal": _INERT,
        "bab.cut.max_num": _INERT,
        "bab.cut.cut_reference_bounds": _INERT,
        "bab.cut.fix_intermediate_bounds": _INERT,
        "bab.clip_n_verify": _ACTS,
        "bab.clip_n_verify.prune": _steers("sub-problems whose region became empty are always dropped", True),
        "bab.clip_n_verify.final_layer": _steers("constraints come from splits, or from the rows of an input split"),
        "bab.clip_n_verify.clip_interm_domain.clip_in_alpha_crown": _steers("alpha-CROWN works on the whole box"),
        "bab.clip_n_verify.alpha_crown": _INERT,
        "bab.clip_n_verify.clip_input_domain": _ACTS,
        "bab.clip_n_verify.clip_input_domain.clip_neuron_selection_type": _steers("all neurons are tightened"),
        "bab.clip_n_verify.clip_input_domain.clip_neuron_selection_value": _steers("all neurons are tightened"),
        "bab.clip_n_verify.clip_input_domain.clip_calculate_volume_metrics": _steers("volumes are not measured"),
        "bab.branching.method": _steers(
            "kfsb is used instead",
            *("kfsb", "babsr", "fsb", "kfsb-intercept-only", "intercept", "random", "naive", "sb", "brute-force"),
        ),
        "bab.branching.candidates": _ACTS,
        "bab.branching.enable_intermediate_bound_opt": _INERT,
        "bab.branching.branching_input_and_activation": _ONE_KIND,
        "bab.branching.branching_input_and_activation_order": _ONE_KIND,
        "bab.branching.branching_input_iterations": _ONE_KIND,
        "bab.branching.branching_relu_iterations": _ONE_KIND,
        "bab.branching.nonlinear_split": _steers("cut at 0 or in the middle, chosen by the bound's derivative"),
        "bab.branching.nonlinear_split.disable": _ACTS,
        "bab.branching.nonlinear_split.relu_only": _ACTS,
        "bab.branching.input_split": _ACTS,
        "bab.branching.input_split.sort_index": _steers("boxes are sorted by their worst clause"),
        "bab.branching.input_split.sort_descending": _steers("the worst boxes come first"),
        "bab.branching.input_split.skip_getting_worst_domain": _steers("finding the worst box costs next to nothing"),
        "bab.branching.input_split.update_rhs_with_attack": _refused("right-hand sides are taken as written"),
        "bab.branching.input_split.presplit_domains": _refused("the input region is the property's own"),
        "bab.attack": _steers("the search tree is not used for attacks"),
        # -- attack --------------------------------------------------------------------------------------------
        "attack": _ACTS,
        "attack.general_attack": _steers("one attack serves all clauses"),
        "attack.pgd_loss_mode": _steers("the best start is the one nearest to a violation"),
        "attack.enable_mip_attack": _INERT,
        "attack.adv_saver": _HOOK,
        "attack.adv_verifier": _HOOK,
        "attack.early_stop_condition": _USER_CODE,
        "attack.adv_example_finalizer": _USER_CODE,
        "attack.pgd_loss": _USER_CODE,
        "attack.attack_func": _HOOK,
        # -- debug ---------------------------------------------------------------------------------------------
        "debug": _steers("this debugging aid does not exist here"),
        "debug.rescale_vnnlib_ptb": _ACTS,
        "debug.sanity_check": _refused("right-hand sides are taken as written"),
        "debug.save_minimal_config": _ACTS,
        "debug.save_minimal_config_omit_keys": _ACTS,
        # -- parallel ------------------------------------------------------------------------------------------
        "parallel": _ACTS,
        # -- flags without a YAML key --------------------------------------------------------------------------
        "--stats_file": _ACTS,
        "--plan": _ACTS,
        "--world_size": _ACTS,
        "--gpu_mem_gib": _ACTS,
        "--undecided": _ACTS,
        "--plan_json": _ACTS,
        "--debug": _ACTS,
        "--quiet": _ACTS,
        "--print_config": _ACTS,
        "--nproc": _ACTS,
        "--nnodes": _ACTS,
        "--node_rank": _ACTS,
        "--master_addr": _ACTS,
        "--master_port": _ACTS,
        "--max_restarts": _ACTS,
        "--checkpoint": _ACTS,
        "--resume": _ACTS,
    }
)
