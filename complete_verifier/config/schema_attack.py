"""Section `attack`: the search for counterexamples by gradients."""

from __future__ import annotations

from typing import Annotated, Literal

from complete_verifier.config.kinds import (
    CHOICE,
    Bool,
    Choice,
    Count,
    Hook,
    Natural,
    NonNegative,
    StepSize,
    Text,
)
from complete_verifier.config.readers import read_bool
from complete_verifier.config.schema_base import Section, option, section


def _attack_mode(word: str) -> str | None:
    """Upstream looks for parts of the word only, so that `diverse_pgd` is plain PGD. Words without PGD are refused."""
    if "pgd" not in word.lower():
        return None
    if "GAMA" in word:
        return "diversed_GAMA_PGD"
    return "diversed_PGD" if "diversed" in word else "PGD"


class InputSplitAttack(Section):
    """The attack on the first boxes of input splitting."""

    pgd_steps: Natural = option(100, "--input_split_pgd_steps", "Steps of that attack.")
    pgd_restarts: Natural = option(30, "--input_split_pgd_restarts", "Random starts of that attack.")
    pgd_alpha: StepSize = option(
        "auto", "--input_split_pgd_alpha", "Step size of that attack; auto is an eighth of the widest side."
    )


class InputSplitCheck(Section):
    """Short attacks on the worst boxes during input splitting."""

    enabled: Annotated[Literal["auto"] | bool, Choice(also=("true", "false"), other=read_bool)] = option(
        "auto", "--enable_check_adv", "Attack during the search; auto does unless pgd_order is skip."
    )
    pgd_steps: Natural = option(5, "--input_split_check_adv_pgd_steps", "Steps of these attacks.")
    pgd_restarts: Natural = option(5, "--input_split_check_adv_pgd_restarts", "Random starts of these attacks.")
    pgd_alpha: StepSize = option(
        "auto", "--input_split_check_adv_pgd_alpha", "Step size of these attacks; auto is an eighth of the widest side."
    )
    max_num_domains: Natural = option(
        10, "--input_split_check_adv_max_num_domains", "Worst boxes attacked; the newest is added."
    )


class Attack(Section):
    """Projected gradient attacks."""

    general_attack: Bool = option(True, "--no_general_attack", "Use the attack that serves clauses of different sizes.")
    pgd_order: Annotated[Literal["before", "after", "middle", "input_bab", "skip"], CHOICE] = option(
        "before", "--pgd_order", "When to attack: before, after or within the incomplete stage, in the search, never."
    )
    pgd_steps: Natural = option(100, "--pgd_steps", "Steps of the attack.")
    pgd_restarts: Natural = option(30, "--pgd_restarts", "Random starts of the attack.")
    pgd_batch_size: Count = option(100_000_000, "--pgd_batch_size", "Starts attacked together.")
    pgd_early_stop: Bool = option(True, "--no_pgd_early_stop", "Stop at the first counterexample.")
    pgd_lr_decay: NonNegative = option(0.99, "--pgd_lr_decay", "Factor on the step size after each step.")
    pgd_alpha: StepSize = option("auto", "--pgd_alpha", "Step size; auto is a quarter of the largest half-width.")
    pgd_alpha_scale: Bool = option(
        False, "--pgd_alpha_scale", "Scale the step to each dimension's width and follow plain signs."
    )
    pgd_loss_mode: Annotated[Literal["hinge", "sum"] | None, CHOICE] = option(
        None, "--pgd_loss_mode", "How the best point among the starts is chosen."
    )
    pgd_restart_when_stuck: Bool = option(
        False, "--pgd_restart_when_stuck", "Draw points anew that a step did not move."
    )
    enable_mip_attack: Bool = option(False, "--mip_attack", "Attack through MIPs; read nowhere upstream.")
    adv_saver: Hook = option("default_adv_saver", "--adv_saver", "User callable that writes a counterexample.")
    adv_verifier: Hook = option("default_adv_verifier", "--adv_verifier", "User callable that checks one.")
    early_stop_condition: Hook = option(
        "default_early_stop_condition", "--early_stop_condition", "User callable that ends the attack."
    )
    adv_example_finalizer: Hook = option(
        "default_adv_example_finalizer", "--adv_example_finalizer", "User callable that completes a counterexample."
    )
    pgd_loss: Hook = option("default_pgd_loss", "--pgd_loss", "User callable that the attack descends.")
    cex_path: Text = option("./test_cex.txt", "--cex_path", "File that receives a counterexample.")
    attack_mode: Annotated[Literal["diversed_PGD", "diversed_GAMA_PGD", "PGD", "boundary"], Choice(_attack_mode)] = (
        option("PGD", "--attack_mode", "How starting points are drawn and whether the GAMA term is added.")
    )
    attack_tolerance: NonNegative = option(
        0.0, "--attack_tolerance", "Margin by which a counterexample has to violate the property."
    )
    attack_func: Hook = option("attack_with_general_specs", "--attack_func", "User callable that replaces the attack.")
    gama_lambda: NonNegative = option(10.0, "--attack_gama_lambda", "First weight of the GAMA term.")
    gama_decay: NonNegative = option(0.9, "--attack_gama_decay", "Factor on that weight after each step.")
    input_split: InputSplitAttack = section(InputSplitAttack)
    input_split_check_adv: InputSplitCheck = section(InputSplitCheck)
