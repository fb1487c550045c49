"""Input splitting from the configuration's words to a search: when it is used, its settings, its attacks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.groups import Group
from complete_verifier.attack.confirm import confirm_inside
from complete_verifier.attack.problems import Problems
from complete_verifier.attack.search import find_counterexample
from complete_verifier.attack.settings import AttackSettings
from complete_verifier.config import Config
from complete_verifier.driver.choices import attack_settings
from complete_verifier.driver.questions import Question
from complete_verifier.events import Listener, Note
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.input_bab.search import search_boxes
from complete_verifier.input_bab.settings import (
    SPLIT_METHODS,
    BoundMethod,
    CheckSettings,
    ClipSettings,
    InputBabProgress,
    InputBabResult,
    InputBabSettings,
    ScoreSettings,
)
from complete_verifier.input_bab.team import attack_context, prepared
from complete_verifier.problem import Problem
from complete_verifier.spec.counterexample import Counterexample

# What one attack within the search may take: of the time left, and seconds; the first one has a share only.
_CHECK_SHARE, _CHECK_SECONDS = 0.05, 2.0
_FIRST_SHARE = 0.1

OnProgress = Callable[[InputBabProgress], None]


def resolved(config: Config, inputs: int) -> Config:
    """What `complete_verifier: auto` means for a network of so many inputs (interface 2.4).

    Few inputs are split, by sb over CROWN bounds; otherwise neurons are.
    """
    if config.general.complete_verifier != "auto":
        return config
    branching = config.bab.branching
    general = config.general.model_copy(update={"complete_verifier": "bab"})
    few = inputs <= branching.input_split.input_dim_threshold
    input_split = branching.input_split.model_copy(update={"enable": few})
    if not few:
        branching = branching.model_copy(update={"input_split": input_split})
        return config.model_copy(update={"general": general, "bab": _with_branching(config, branching)})
    branching = branching.model_copy(update={"input_split": input_split, "method": "sb"})
    solver = config.solver.model_copy(update={"bound_prop_method": "crown"})
    update = {"general": general, "solver": solver, "bab": _with_branching(config, branching)}
    return config.model_copy(update=update)


def _with_branching(config: Config, branching: object) -> object:
    return config.bab.model_copy(update={"branching": branching})


def splits_inputs(config: Config) -> bool:
    """Whether branch and bound works on the input box."""
    return config.bab.branching.input_split.enable


def notes(config: Config) -> list[str]:
    """Lines about settings that the chosen kind of split cannot follow."""
    method, order = config.bab.branching.method, config.attack.pgd_order
    if splits_inputs(config):
        if method not in SPLIT_METHODS:
            return [f"bab.branching.method = {method} splits neurons; the input is split by sb"]
        return []
    lines = []
    if method in SPLIT_METHODS:
        lines.append(f"bab.branching.method = {method} splits the input; neurons are split by kfsb")
    if order == "input_bab":
        lines.append("attack.pgd_order = input_bab: no attack runs while neurons are split")
    return lines


def input_bab_settings(config: Config) -> InputBabSettings:
    """For branch and bound on the input box."""
    split, branching, solver = config.bab.branching.input_split, config.bab.branching, config.solver
    clip = config.bab.clip_n_verify.clip_input_domain
    alpha = solver.alpha_crown
    order, check = config.attack.pgd_order, config.attack.input_split_check_adv
    enabled = order != "skip" if check.enabled == "auto" else bool(check.enabled)
    score = ScoreSettings(
        method="sb" if branching.method not in SPLIT_METHODS else branching.method,
        coeff_thresh=split.sb_coeff_thresh,
        margin_weight=split.sb_margin_weight,
        sum_rows=split.sb_sum,
        primary_row=split.sb_primary_spec,
        touch_zero=split.touch_zero_score,
        candidates=branching.candidates,
        bf_backup_thresh=split.bf_backup_thresh,
        bf_rhs_offset=split.bf_rhs_offset,
        bf_rounds=split.bf_iters,
        bf_batch_size=split.bf_batch_size,
        bf_zero_crossing=split.bf_zero_crossing_score,
    )
    return InputBabSettings(
        bound_method=_bound_method(config),
        batch_size=solver.batch_size,
        min_batch_ratio=solver.min_batch_size_ratio,
        reorder=split.reorder_bab,
        partitions=max(2, split.split_partitions),
        hint=split.split_hint,
        ibp_enhancement=split.ibp_enhancement,
        compare_with_old=split.compare_with_old_bounds,
        alpha_iterations=alpha.input_split_alpha_iteration,
        alpha_lr=alpha.input_split_lr_alpha,
        max_iterations=config.bab.max_iterations,
        max_domains=config.bab.max_domains,
        traversal=config.bab.tree_traversal or "worst_first",
        score=score,
        clip=ClipSettings(enabled=clip.enabled, complete=clip.clip_type == "complete", iterations=clip.clip_iterations),
        check=CheckSettings(
            enabled=enabled,
            from_visited=math.inf if split.adv_check < 0 else split.adv_check,
            boxes=check.max_num_domains,
        ),
        first_attack=order in ("after", "input_bab"),
        show_volume=split.show_progress,
        synchronous=config.bab.force_synchronous,
    )


def _bound_method(config: Config) -> BoundMethod:
    match config.solver.bound_prop_method:
        case "crown" | "init-crown":
            return "crown"
        case "ibp" | "crown-ibp" | "forward" | "forward+crown" as method:
            return method
        case _:  # alpha-crown, which also stands in for alpha-forward and the dynamic kinds
            return "alpha-crown"


def search_input(
    question: Question, start: IncompleteResult, config: Config, listener: Listener, on_progress: OnProgress
) -> tuple[InputBabResult, Counterexample | None]:
    """The search, and the counterexample that ended it, if one did: the same on all ranks."""
    settings = input_bab_settings(config)
    problem = prepared(question.problem)
    attacker = _Attacker(question, problem, config, attack_context(problem.context, settings.synchronous))
    attacks = settings.check.enabled or settings.first_attack

    def progressed(progress: InputBabProgress) -> None:
        if progress.closed_volume is not None:
            listener(Note(f"Round {progress.round}: {100 * progress.closed_volume:.4f} % of the volume is closed"))
        on_progress(progress)

    found = search_boxes(
        problem,
        start,
        settings,
        progressed,
        attacker.try_point if attacks else None,
        attacker.try_boxes if attacks else None,
    )
    return found, _of_the_first(question.problem.context.world, attacker.found)


def _of_the_first(world: Group, mine: Counterexample | None) -> Counterexample | None:
    """The counterexample of the first rank that has one, for all."""
    has = [row[0] > 0 for row in world.numbers([mine is not None])]
    return world.same_object(mine, has.index(True)) if any(has) else None


@dataclass(slots=True)
class _Attacker:
    """Looks for counterexamples in boxes of the search; the original network alone confirms them.

    ``problem``: as it is searched. ``context``: of the ranks that attack the same boxes together.
    """

    question: Question
    problem: Problem
    config: Config
    context: DistributedContext
    found: Counterexample | None = None
    _targets: Problems | None = field(default=None, repr=False)

    def try_point(self, x: np.ndarray) -> bool:
        self.found = confirm_inside(self.question.judge, self.question.prop, x.reshape(-1))
        return self.found is not None

    def try_boxes(self, lower: Tensor, upper: Tensor, clause: Tensor, first: bool) -> bool:
        problem = self.problem
        if self._targets is None:
            dtype, device = problem.clauses.c.dtype, problem.context.device
            self._targets = Problems.from_property(self.question.searched, problem.graph.input_shape, dtype, device)
        left = problem.clock.left()
        seconds = _FIRST_SHARE * left if first else min(_CHECK_SHARE * left, _CHECK_SECONDS)
        until = time.monotonic() + seconds
        result = find_counterexample(
            problem.graph,
            self.question.prop,
            self.question.judge,
            self._settings(first),
            problem.context.device,
            lambda: until - time.monotonic(),
            self._targets.narrowed(lower, upper, clause),
            self.context,
        )
        self.found = result.counterexample
        return self.found is not None

    def _settings(self, first: bool) -> AttackSettings:
        attack = self.config.attack
        own = attack.input_split if first else attack.input_split_check_adv
        return replace(
            attack_settings(self.config),
            steps=own.pgd_steps,
            restarts=own.pgd_restarts,
            alpha=own.pgd_alpha,
            scouting=first,
        )
