"""Section `general`: device, precision, reproducibility, which stages run, and what is written."""

from __future__ import annotations

from typing import Annotated, Literal

from complete_verifier.config.kinds import (
    CHOICE,
    CHOICE_OR_CUSTOMIZED,
    Bool,
    Hook,
    OptHook,
    OptText,
    Seed,
    Text,
)
from complete_verifier.config.schema_base import Section, option


class General(Section):
    """Settings of the whole run."""

    device: Annotated[Literal["cpu", "cuda"], CHOICE] = option(
        "cuda", "--device", "Device that computes; left unset, a machine without a GPU falls back to the CPU."
    )
    seed: Seed = option(100, "--seed", "Seed of every random generator, set before the model is loaded.")
    conv_mode: Annotated[Literal["patches", "matrix"], CHOICE] = option(
        "patches", "--conv_mode", "How coefficients of convolutions are held: as sliding windows or as full matrices."
    )
    deterministic: Bool = option(False, "--deterministic", "Use only algorithms that give the same bits on every run.")
    double_fp: Bool = option(False, "--double_fp", "Compute everything in float64.")
    loss_reduction_func: Annotated[Literal["sum", "max", "mean", "min"], CHOICE] = option(
        "sum", "--loss_reduction_func", "How the lower bounds of one sub-problem's rows become one loss to optimise."
    )
    sparse_alpha: Bool = option(True, "--no_sparse_alpha", "Keep alpha for unstable neurons only.")
    sparse_interm: Bool = option(True, "--no_sparse_interm", "Recompute intermediate bounds of unstable neurons only.")
    save_adv_example: Bool = option(
        False, "--save_adv_example", "Also write a counterexample to the file named by attack.cex_path."
    )
    verify_onnxruntime_output: Bool = option(
        False, "--verify_onnxruntime_output", "Confirm counterexamples with onnxruntime (always done here)."
    )
    eval_adv_example: Bool = option(
        False, "--eval_adv_example", "Hand a saved counterexample to an external checking script."
    )
    onnx_adv_example: Bool = option(
        False, "--onnx_adv_example", "Write the outputs that onnxruntime computes for the counterexample."
    )
    show_adv_example: Bool = option(False, "--show_adv_example", "Log the counterexample.")
    precompile_jit: Bool = option(
        False, "--precompile_jit", "Warm up compiled kernels before the clock of an instance starts."
    )
    reset_seed_after_precompile: Bool = option(
        False, "--reset_seed_after_precompile", "Set the seed again after that warm-up."
    )
    prepare_only: Bool = option(False, "--prepare_only", "Read and convert model and property, then stop.")
    complete_verifier: Annotated[Literal["bab", "mip", "bab-refine", "skip", "auto"] | str, CHOICE_OR_CUSTOMIZED] = (
        option("bab", "--complete_verifier", "What follows the incomplete stage: branch and bound, MIP or nothing.")
    )
    enable_incomplete_verification: Bool = option(
        True, "--no_incomplete", "Try to prove the property by bounds alone before searching."
    )
    csv_name: OptText = option(None, "--csv_name", "List of instances, relative to root_path.")
    results_file: Text = option("out.txt", "--results_file", "File for the verdict; for a list, a table (CSV).")
    root_path: Text = option(
        "", "--root_path", "Folder that paths of a list start from; $CONFIG_PATH stands for the YAML file's folder."
    )
    deterministic_opt: Bool = option(
        False, "--deterministic_opt", "Return exactly the alphas that gave the returned bounds."
    )
    graph_optimizer: Hook = option(
        'Customized("custom_graph_optimizer", "default_optimizer")',
        "--graph_optimizer",
        "User callable that rewrites the graph of bounds after it is built.",
    )
    buffer_has_batchdim: Bool = option(
        False, "--buffer_has_batchdim", "Take the first axis of stored constants as the batch."
    )
    save_output: Bool = option(False, "--save_output", "Write the results of a list as a pickle as well.")
    output_file: Text = option("out.pkl", "--output_file", "Where that pickle goes.")
    return_optimized_model: Bool = option(
        False, "--return_optimized_model", "Stop after the incomplete stage and hand the bounded model to the caller."
    )
    store_all_specs_on_cpu: Bool = option(
        False, "--store_all_specs_on_cpu", "Keep the rows of the property in host memory."
    )
    adhoc_tuning: OptHook = option(
        None, "--adhoc_tuning", "User callable that may change settings once model and property are known."
    )
