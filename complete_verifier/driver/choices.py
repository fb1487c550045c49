"""From the configuration to what the stages take: device, and one settings value per stage."""

from __future__ import annotations

import torch

from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.errors import ConfigError
from complete_verifier.attack.settings import AttackSettings
from complete_verifier.bab.clip import ClipSettings
from complete_verifier.bab.refined_search import RefineShare
from complete_verifier.bab.settings import BabSettings
from complete_verifier.branching.brancher import METHODS
from complete_verifier.config import Config, LoadedConfig, literal_dict
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
    settings = _bound_settings(config)
    return settings if config.model.bound_opts is None else _with_bound_opts(settings, config.model.bound_opts)


def _bound_settings(config: Config) -> BoundSettings:
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
            reduction=config.general.loss_reduction_func,
            share_alphas=alpha.share_alphas,
            disabled=alpha.disable_optimization,
        ),
    )


def _with_bound_opts(settings: BoundSettings, text: str) -> BoundSettings:
    """The settings with `model.bound_opts` on top."""
    from auto_LiRPA.bound_options import BoundOptions

    options = BoundOptions(bounds=settings).updated(literal_dict(text))
    if options != BoundOptions(bounds=options.bounds):
        raise ConfigError(
            "model.bound_opts: the rule for initial slopes, crown_batch_size and stop rules act from Python only;"
            " leave them out"
        )
    return options.bounds


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
        # without alpha and beta one pass is all there is
        iterations=1 if config.bab.vanilla_crown else max(1, beta.iteration),
        lr_alpha=beta.lr_alpha,
        lr_beta=beta.lr_beta,
        decay=beta.lr_decay,
        patience=config.solver.early_stop_patience,
        start_save_best=config.solver.start_save_best,
        method=branching.method if branching.method in METHODS else "kfsb",
        reduceop="min" if branching.reduceop == "auto" else branching.reduceop,
        candidates=branching.candidates,
        seed=config.general.seed,
        traversal=config.bab.tree_traversal or "worst_first",
        auto_enlarge=config.solver.auto_enlarge_batch_size,
        pruning_in_iteration=config.bab.pruning_in_iteration,
        pruning_ratio=config.bab.pruning_in_iteration_ratio,
        synchronous=config.bab.force_synchronous,
        half_variables=config.solver.alpha_crown.alpha_dtype == "float16",
        clip=_clip_settings(config),
        nonlinear=not (branching.nonlinear_split.disable or branching.nonlinear_split.relu_only),
    )


def refine_share(config: Config) -> RefineShare | None:
    """How a search's time is shared with the refinement of hidden neurons; None where that is off."""
    refine = config.bab.refine
    return RefineShare(refine.attempt, refine.share) if refine.enabled else None


def _clip_settings(config: Config) -> ClipSettings | None:
    """For tightening the boxes of sub-problems by their splits; None where it is off."""
    clip = config.bab.clip_n_verify
    if not clip.clip_interm_domain.enabled or clip.clip_interm_domain.topk_objective == 0:
        return None
    return ClipSettings(
        top=clip.clip_interm_domain.topk_objective,
        with_input=clip.clip_interm_domain.with_input,
        by_distance=clip.rearrange_constraints,
    )
