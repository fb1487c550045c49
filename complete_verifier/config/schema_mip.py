"""Section `solver.mip`: mixed-integer programs."""

from __future__ import annotations

from typing import Annotated, Literal

from complete_verifier.config.kinds import CHOICE, Bool, CountOrNone, Natural, NonNegative, OptNatural
from complete_verifier.config.schema_base import Section, option


class Mip(Section):
    """Exact solving and tightening of neurons by mixed-integer programs."""

    unstable_neuron_threshold: Natural = option(
        0, "--mip_unstable_neuron_threshold", "Unstable neurons up to which auto prefers MIP; read nowhere upstream."
    )
    parallel_solvers: OptNatural = option(None, "--mip_multi_proc", "Solver processes; null takes one per core.")
    solver_threads: Natural = option(1, "--mip_threads", "Threads of each solver process.")
    refine_neuron_timeout: NonNegative = option(
        15.0, "--mip_perneuron_refine_timeout", "Seconds for tightening one neuron."
    )
    refine_neuron_time_percentage: NonNegative = option(
        0.8, "--mip_refine_timeout", "Share of the timeout spent on tightening neurons."
    )
    early_stop: Bool = option(True, "--no_mip_early_stop", "Stop a solve as soon as its sign is known.")
    adv_warmup: Bool = option(True, "--disable_adv_warmup", "Start the solver from the attack's best point.")
    mip_solver: Annotated[Literal["gurobi", "scip"], CHOICE] = option("gurobi", "--mip_solver", "Solver to use.")
    skip_unsafe: Bool = option(False, "--mip_skip_unsafe", "Never take a counterexample from the solver.")
    topk_filter: NonNegative = option(
        1.0, "--topk_percentage", "Share of neurons that are tightened; read nowhere upstream."
    )
    sliding_window: CountOrNone = option(
        -1, "--mip_refine_sliding_window", "Layers encoded before the one being tightened; -1 encodes all."
    )
    extra_constraint: Bool = option(
        False, "--mip_refine_extra_input_constraints", "Add constraints on the input to such a window."
    )
    refine_neuron_timeout_increasement: Natural = option(
        0, "--mip_perneuron_refine_timeout_increasement", "Seconds added per neuron while time is left."
    )
    timeout_neuron_percentage: NonNegative = option(
        0.3, "--mip_timeout_neuron", "Share of neurons that may time out before the limits are changed."
    )
    remaining_timeout_threshold: NonNegative = option(
        1.0,
        "--mip_remaining_timeout_coefficient_for_increasement",
        "How much time has to be left, as a multiple, before that increase.",
    )
    remove_unstable_neurons: Bool = option(
        False, "--mip_refine_remove_neurons", "Leave neurons out that hardly influence the result."
    )
    formulation: Annotated[Literal["lp", "lp_integer", "mip"], CHOICE] = option(
        "mip", "--mip_formulation", "Program to solve: linear, relaxed integer or mixed-integer."
    )
    output_cut: Bool = option(False, "--mip_add_output_cut", "Add a violated property as a cut; read nowhere upstream.")
