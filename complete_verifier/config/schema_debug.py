"""Section `debug`: aids for developers."""

from __future__ import annotations

from typing import Annotated, Literal

from complete_verifier.config.kinds import CHOICE, Bool, Natural, OptFloat, OptText, Texts
from complete_verifier.config.schema_base import Section, option


class Debug(Section):
    """Aids for developers."""

    view_model: Bool = option(False, "--view_model", "Dump the model and stop.")
    lp_test: Annotated[Literal["MIP", "LP"] | None, CHOICE] = option(
        None, "--lp_test", "Compare bounds with linear or mixed-integer programs."
    )
    rescale_vnnlib_ptb: OptFloat = option(None, "--rescale_vnnlib_ptb", "Scale the property's boxes by this factor.")
    test_optimized_bounds: Bool = option(False, "--test_optimized_bounds", "Check optimised bounds against programs.")
    test_optimized_bounds_after_n_iterations: Natural = option(
        0, "--test_optimized_bounds_after_n_iterations", "Iterations before such checks start."
    )
    print_verbose_decisions: Bool = option(False, "--print_verbose_decisions", "Log every decision to split.")
    biccos_mip_sanity_check: Bool = option(
        False, "--biccos_mip_sanity_check", "Check inferred cuts by MIP; read nowhere upstream."
    )
    sanity_check: Annotated[Literal["Full", "Worst"] | None, CHOICE] = option(
        None, "--sanity_check", "Replace right-hand sides by what an attack reached."
    )
    z_split_enabled: Bool = option(False, "--z_split", "Split on z; read nowhere upstream.")
    save_minimal_config: OptText = option(
        None, "--save_minimal_config", "File that receives the settings that differ from the defaults."
    )
    save_minimal_config_omit_keys: Texts = option(
        (), "--save_minimal_config_omit_keys", "Settings left out of that file."
    )
