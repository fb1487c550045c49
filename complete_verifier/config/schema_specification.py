"""Section `specification`: the input region and what must hold on it."""

from __future__ import annotations

from typing import Annotated, Literal

from complete_verifier.config.kinds import CHOICE, NonNegative, Norm, OptFinite, OptNonNegative, OptText, Text
from complete_verifier.config.schema_base import Section, option


class Specification(Section):
    """The property: a VNN-LIB file, or a ball or box around each example of a data set."""

    type: Annotated[Literal["lp", "box", "bound"], CHOICE] = option(
        "lp", "--spec_type", "Region around an example: a ball, or the box that the loader gives (bound = box)."
    )
    robustness_type: Annotated[
        Literal["verified-acc", "runnerup", "clean-acc", "specify-target", "all-positive"], CHOICE
    ] = option("verified-acc", "--robustness_type", "Which margins of an example have to be positive.")
    norm: Norm = option(float("inf"), "--norm", "Norm p of the ball; anything but .inf switches the attack off.")
    epsilon: OptNonNegative = option(None, "--epsilon", "Radius of the ball before normalisation.")
    epsilon_min: NonNegative = option(0.0, "--epsilon_min", "Lower end of a range of radii; unused upstream.")
    vnnlib_path: OptText = option(
        None, "--vnnlib_path", "VNN-LIB file; with onnx_path it selects one instance and wins over csv_name."
    )
    vnnlib_path_prefix: Text = option(
        "", "--vnnlib_path_prefix", "Put in front of the property paths of an instance list."
    )
    shrink_eps: OptFinite = option(None, "--shrink_eps", "Move both ends of every input interval inwards by this much.")
    rhs_offset: OptFinite = option(None, "--rhs_offset", "Added to the right-hand side of every row of the property.")
