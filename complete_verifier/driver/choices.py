"""From the configuration to what the stages take: device, and one settings value per stage."""

from __future__ import annotations

import torch

from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.errors import ConfigError
from complete_verifier.attack.settings import AttackSettings
from complete_verifier.bab.search import METHODS
from complete_verifier.bab.settings import BabSettings
from complete_verifier.config import Config, LoadedConfig
from complete_verifier.incomplete.settings import IncompleteSettings, Method

NO_GPU = "general.device is not set and there is no CUDA device: the CPU computes"


def choose_device(loaded: LoadedConfig) -> tuple[torch.device, str | None]:
    """The device, and a line for the user where it is another one than the default.

    Raises:
        ConfigError: CUDA was asked for and there is none.
    """
    wanted = loaded.config.general.device
    if wanted == "cpu" or torch.cuda.is_available():
        return torch.device(wanted), None
    if loaded.is_set("general.device"):
        origin = loaded.origins["general.device"]
        raise ConfigError(f"{origin}: general.device = cuda: no CUDA device is available here; use cpu")
    return torch.device("cpu"), NO_GPU


def bound_settings(config: Config) -> BoundSettings:
    """For every bounding pass, and for alpha-CROWN of the incomplete stage."""
    alpha = config.solver.alpha_crown
    return BoundSettings(
        compare_with_ibp=config.solver.crown.compare_crown_with_ibp,
        sparse_intermediate=config.general.sparse_interm,
        forward_max_dim=config.solver.forward.max_dim,
        alpha=AlphaSettings(
            mode="keep",
            iterations=max(1, alpha.iteration),
            lr_alpha=alpha.lr_alpha,
            decay=alpha.lr_decay,
            patience=config.solver.early_stop_patience,
            start_save_best=config.solver.start_save_best,
            share_alphas=alpha.share_alphas,
            disabled=alpha.disable_optimization,
        ),
    )


def incomplete_settings(config: Config, timeout_s: float) -> IncompleteSettings:
    """For the incomplete stage. Switched off, or without iterations, it is plain CROWN, which BaB starts from."""
    return IncompleteSettings(
        method=_method(config),
        prune_after_crown=config.solver.prune_after_crown,
        max_rows=config.solver.build_batch_size,
        max_seconds=config.solver.alpha_crown.max_time * timeout_s,
    )


def _method(config: Config) -> Method:
    match config.solver.bound_prop_method:
        case "alpha-forward" | "dynamic-forward" | "dynamic-forward+crown" | "dynamic-forward+backward" | "alpha-crown":
            # the configuration has warned that alpha-CROWN stands in for the first four
            plain = not config.general.enable_incomplete_verification or config.solver.alpha_crown.iteration == 0
            return "crown" if plain else "alpha-crown"
        case method:
            return method


def attack_settings(config: Config) -> AttackSettings:
    """For the gradient attack before, within or after the incomplete stage."""
    attack = config.attack
    return AttackSettings(
        order=attack.pgd_order,
        steps=attack.pgd_steps,
        restarts=attack.pgd_restarts,
        batch_size=attack.pgd_batch_size,
        early_stop=attack.pgd_early_stop,
        lr_decay=attack.pgd_lr_decay,
        alpha=attack.pgd_alpha,
        alpha_scale=attack.pgd_alpha_scale,
        restart_when_stuck=attack.pgd_restart_when_stuck,
        mode=attack.attack_mode,
        tolerance=attack.attack_tolerance,
        gama_lambda=attack.gama_lambda,
        gama_decay=attack.gama_decay,
        seed=config.general.seed,
    )


def bab_settings(config: Config) -> BabSettings:
    """For branch and bound on activation splits."""
    beta, branching = config.solver.beta_crown, config.bab.branching
    return BabSettings(
        batch_size=config.solver.batch_size,
        min_batch_ratio=config.solver.min_batch_size_ratio,
        max_iterations=config.bab.max_iterations,
        max_domains=config.bab.max_domains,
        iterations=max(1, beta.iteration),
        lr_alpha=beta.lr_alpha,
        lr_beta=beta.lr_beta,
        decay=beta.lr_decay,
        patience=config.solver.early_stop_patience,
        start_save_best=config.solver.start_save_best,
        method=branching.method if branching.method in METHODS else "kfsb",
        reduceop="min" if branching.reduceop == "auto" else branching.reduceop,
        candidates=branching.candidates,
        traversal=config.bab.tree_traversal or "worst_first",
        auto_enlarge=config.solver.auto_enlarge_batch_size,
        pruning_in_iteration=config.bab.pruning_in_iteration,
    )
