"""Section `bab.clip_n_verify`: shrinking input boxes and intermediate bounds with linear constraints."""

from __future__ import annotations

from typing import Annotated, Literal

from complete_verifier.config.kinds import CHOICE, Bool, Float, Natural
from complete_verifier.config.schema_base import Section, option, section


class ClipInput(Section):
    """Clipping of input boxes in input splitting."""

    enabled: Bool = option(False, "--enable_clip_input", "Cut off the part of a box that the row bounds have proved.")
    clip_type: Annotated[Literal["relaxed", "complete"], CHOICE] = option(
        "relaxed", "--clip_input_type", "Shrink the box only, or use the constraints in every concretisation."
    )
    clip_neuron_selection_type: Annotated[Literal["ratio", "number"], CHOICE] = option(
        "ratio", "--clip_input_neuron_selection_type", "How the number of tightened neurons is given."
    )
    clip_neuron_selection_value: Float = option(
        -1.0, "--clip_input_neuron_selection_value", "That number or share; negative takes all."
    )
    clip_iterations: Natural = option(1, "--clip_iterations", "How often clipping is repeated.")
    clip_calculate_volume_metrics: Bool = option(
        False, "--clip_calculate_volume_metrics", "Log how much volume was cut off."
    )


class ClipInterm(Section):
    """Clipping of intermediate bounds in ReLU splitting."""

    enabled: Bool = option(
        False, "--enable_complete_clip", "Tighten intermediate bounds of sub-problems with the constraints of splits."
    )
    with_input: Bool = option(False, "--clip_interm_w_input", "Shrink the input box too.")
    clip_in_alpha_crown: Bool = option(False, "--clip_in_alpha_crown", "Use the output constraints inside alpha-CROWN.")
    topk_objective: Natural = option(20, "--clip_topk_objective", "Neurons tightened in each layer; 0 tightens none.")


class ClipNVerify(Section):
    """Clip-and-verify."""

    rearrange_constraints: Bool = option(
        False, "--clip_constraints_rearrange", "Apply constraints in the order of their distance from the centre."
    )
    alpha_crown: Bool = option(False, "--clip_alpha_crown", "Clip during alpha-CROWN; read nowhere upstream.")
    prune: Bool = option(False, "--clip_enable_prune", "Drop sub-problems whose region became empty.")
    final_layer: Bool = option(False, "--clip_using_final_layer", "Use the last layer's coefficients as constraints.")
    clip_input_domain: ClipInput = section(ClipInput)
    clip_interm_domain: ClipInterm = section(ClipInterm)
