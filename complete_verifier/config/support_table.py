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


def _steers(reason: str, *acting: object, even_default: bool = False) -> Support:
    return Support(Status.STEERS, reason, acting, even_default)


def _refused(reason: str, *acting: object) -> Support:
    return Support(Status.REFUSED, reason, acting)


_ACTS = Support(Status.ACTS)
_INERT = _steers("it has no effect in upstream either")
_USER_CODE = _refused("user code is not called here")
_DATASETS = _refused("properties of data sets are not built yet; give a VNN-LIB file")
_INPUT_SPLIT = _steers("the input is not split yet; neurons are")
_RANKS = _refused("one process on one device so far")

SUPPORT: Mapping[str, Support] = MappingProxyType(
    {
        # -- general -------------------------------------------------------------------------------------------
        "general": _ACTS,
        "general.conv_mode": _steers("the form of coefficients is chosen by the engine", "matrix"),
        "general.loss_reduction_func": _steers("the sum is optimised"),
        "general.sparse_alpha": _steers("alpha is always kept for unstable neurons only"),
        "general.eval_adv_example": _steers("there is no external checker; onnxruntime confirms each counterexample"),
        "general.onnx_adv_example": _steers("outputs in a counterexample are onnxruntime's already"),
        "general.show_adv_example": _steers("the counterexample goes to the results file"),
        "general.prepare_only": _refused("a run always verifies; nothing has to be prepared"),
        "general.complete_verifier": _steers("branch and bound is used instead", "bab", "skip", "auto"),
        "general.deterministic_opt": _steers("alphas are kept with the bounds they gave"),
        "general.graph_optimizer": _USER_CODE,
        "general.buffer_has_batchdim": _refused("constants never have a batch axis here"),
        "general.save_output": _steers("--stats_file writes the facts of a run as JSON"),
        "general.output_file": _steers("--stats_file writes the facts of a run as JSON"),
        "general.return_optimized_model": _refused("use BoundedModule from Python"),
        "general.store_all_specs_on_cpu": _steers("rows of the property live on the device"),
        "general.adhoc_tuning": _USER_CODE,
        # -- model ---------------------------------------------------------------------------------------------
        "model": _ACTS,
        "model.name": _refused("networks are read from ONNX files; give model.onnx_path"),
        "model.path": _refused("networks are read from ONNX files; give model.onnx_path"),
        "model.onnx_path_prefix": _refused("paths of a list are relative to general.root_path"),
        "model.cache_onnx_conversion": _steers("reading a network is fast enough without a cache"),
        "model.debug_onnx": _steers("there is no conversion to compare"),
        "model.onnx_quirks": _refused(
            "only the quirk that frees a frozen batch size is known", "{'Reshape': {'fix_batch_size': True}}"
        ),
        "model.onnx_loader": _USER_CODE,
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
        "model.onnx_vnnlib_joint_optimization_flags": _refused("a final softmax is not peeled off yet"),
        "model.check_optimized": _steers("there is no rewritten file to compare with"),
        "model.flatten_final_output": _refused("nothing is appended to a network yet"),
        "model.optimize_graph": _USER_CODE,
        "model.with_jacobian": _refused("Jacobians are not bounded here"),
        "model.bound_opts": _refused("options of BoundedModule cannot be given here yet"),
        # -- data: an instance list is run; mean, std and num_outputs are read with a data set only ------------
        "data": _ACTS,
        "data.pkl_path": _DATASETS,
        "data.dataset": _DATASETS,
        "data.data_filter_path": _refused("no filter is read, neither here nor upstream"),
        "data.data_idx_file": _DATASETS,
        # -- specification -------------------------------------------------------------------------------------
        "specification": _DATASETS,
        "specification.vnnlib_path": _ACTS,
        "specification.epsilon_min": _refused("a range of radii is not checked, neither here nor upstream"),
        "specification.vnnlib_path_prefix": _refused("paths of a list are relative to general.root_path"),
        "specification.shrink_eps": _refused("input boxes are taken as written"),
        "specification.rhs_offset": _refused("right-hand sides are taken as written"),
        # -- solver --------------------------------------------------------------------------------------------
        "solver": _ACTS,
        "solver.auto_enlarge_batch_size": _steers("the batch keeps its size", False),
        "solver.batched_crown_auto_enlarge_max_vram_ratio": _steers("tiles keep their size"),
        "solver.use_float64_in_last_iteration": _steers("general.double_fp computes everything in float64"),
        "solver.bound_prop_method": _steers(
            "alpha-crown is used instead",
            *("alpha-crown", "crown", "crown-ibp", "ibp", "init-crown", "forward", "forward+crown"),
        ),
        "solver.init_bound_prop_method": _INPUT_SPLIT,
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
        "solver.alpha-crown.alpha_dtype": _steers("alphas keep the precision of the run"),
        "solver.alpha-crown.input_split_alpha_iteration": _INPUT_SPLIT,
        "solver.alpha-crown.input_split_lr_alpha": _INPUT_SPLIT,
        "solver.invprop": _steers("output constraints are not used for hidden layers"),
        "solver.beta-crown.optimizer": _steers("Adam is used"),
        "solver.beta-crown.beta": _steers("beta is always used"),
        "solver.beta-crown.beta_warmup": _INERT,
        "solver.beta-crown.enable_opt_interm_bounds": _steers("sub-problems inherit their intermediate bounds"),
        "solver.beta-crown.all_node_split_LP": _steers("such sub-problems are always decided by an LP"),
        "solver.forward": _steers("forward bounds have no settings"),
        "solver.forward.reset_threshold": _INERT,
        "solver.mip": _steers("mixed-integer programs are not solved yet"),
        "solver.mip.unstable_neuron_threshold": _INERT,
        "solver.mip.topk_filter": _INERT,
        "solver.mip.output_cut": _INERT,
        # -- bab -----------------------------------------------------------------------------------------------
        "bab": _ACTS,
        "bab.max_domains": _ACTS,
        "bab.decision_thresh": _refused("a margin is proved when it is above zero"),
        "bab.get_upper_bound": _steers("upper bounds are not needed for a verdict"),
        "bab.pruning_in_iteration": _steers("proved sub-problems are dropped after an optimisation", False),
        "bab.pruning_in_iteration_ratio": _steers("proved sub-problems are dropped after an optimisation"),
        "bab.sort_targets": _INERT,
        "bab.batched_domain_list": _INERT,
        "bab.optimized_interm": _steers("sub-problems inherit their intermediate bounds"),
        "bab.interm_transfer": _steers("intermediate bounds are kept per sub-problem"),
        "bab.recompute_interm": _steers("sub-problems inherit their intermediate bounds"),
        "bab.sort_domain_interval": _steers("the worst sub-problems always come first"),
        "bab.vanilla_crown": _steers("alpha and beta are always optimised"),
        "bab.tree_traversal": _ACTS,
        "bab.hugetensor_allocator": _steers("the store allocates what it needs"),
        "bab.force_synchronous": _steers("one process explores the same tree anyway"),
        "bab.domain_parallel": _RANKS,
        "bab.checkpoint": _steers("no checkpoints are written yet"),
        "bab.cut": _steers("cutting planes are not used; the search goes on without"),
        "bab.cut.topk_cuts_in_filter": _INERT,
        "bab.cut.batch_size_primal": _INERT,
        "bab.cut.max_num": _INERT,
        "bab.cut.cut_reference_bounds": _INERT,
        "bab.cut.fix_intermediate_bounds": _INERT,
        "bab.clip_n_verify": _steers("domains are not clipped yet"),
        "bab.clip_n_verify.alpha_crown": _INERT,
        "bab.branching.method": _steers("kfsb is used instead", "kfsb", "babsr"),
        "bab.branching.candidates": _ACTS,
        "bab.branching.enable_intermediate_bound_opt": _INERT,
        "bab.branching.branching_input_and_activation": _INPUT_SPLIT,
        "bab.branching.branching_input_and_activation_order": _INPUT_SPLIT,
        "bab.branching.branching_input_iterations": _INPUT_SPLIT,
        "bab.branching.branching_relu_iterations": _INPUT_SPLIT,
        "bab.branching.nonlinear_split": _steers("only piecewise linear neurons are split so far"),
        "bab.branching.input_split": _INPUT_SPLIT,
        "bab.branching.input_split.update_rhs_with_attack": _refused("right-hand sides are taken as written"),
        "bab.branching.input_split.presplit_domains": _refused("the input region is the property's own"),
        "bab.attack": _steers("the search tree is not used for attacks"),
        # -- attack --------------------------------------------------------------------------------------------
        "attack": _ACTS,
        "attack.general_attack": _steers("one attack serves all clauses"),
        "attack.pgd_order": _steers("no attack runs during the search", "before", "after", "middle", "skip"),
        "attack.pgd_loss_mode": _steers("the best start is the one nearest to a violation"),
        "attack.enable_mip_attack": _INERT,
        "attack.adv_saver": _USER_CODE,
        "attack.adv_verifier": _USER_CODE,
        "attack.early_stop_condition": _USER_CODE,
        "attack.adv_example_finalizer": _USER_CODE,
        "attack.pgd_loss": _USER_CODE,
        "attack.attack_func": _USER_CODE,
        "attack.input_split": _INPUT_SPLIT,
        "attack.input_split_check_adv": _INPUT_SPLIT,
        # -- debug ---------------------------------------------------------------------------------------------
        "debug": _steers("this debugging aid does not exist here"),
        "debug.rescale_vnnlib_ptb": _refused("input boxes are taken as written"),
        "debug.sanity_check": _refused("right-hand sides are taken as written"),
        "debug.save_minimal_config": _steers("--print_config prints all settings"),
        # -- parallel ------------------------------------------------------------------------------------------
        "parallel": _ACTS,
        "parallel.mode": _refused("one process on one device so far", "single", "auto"),
        "parallel.rows": _refused("one process on one device so far", "auto", "replicate"),
        "parallel.domains": _refused("one process on one device so far", "auto", "replicate"),
        "parallel.mesh": _RANKS,
        "parallel.tp_intermediate": _RANKS,
        # -- flags without a YAML key --------------------------------------------------------------------------
        "--stats_file": _ACTS,
        "--plan": _refused("memory is not predicted yet"),
        "--world_size": _ACTS,
        "--gpu_mem_gib": _ACTS,
        "--debug": _ACTS,
        "--quiet": _ACTS,
        "--print_config": _ACTS,
        "--nproc": Support(Status.REFUSED, "one process on one device so far", (1,)),
        "--checkpoint": _refused("no checkpoints are written yet"),
        "--resume": _refused("no checkpoints are written yet"),
    }
)
