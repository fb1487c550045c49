"""A search that pauses to tighten the hidden neurons' boxes: a short attempt, the refinement, then the search."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from auto_LiRPA.parallel.numerics import full_precision
from complete_verifier.bab.keeper import Keeper
from complete_verifier.bab.nonlinear_search import nonlinear_search, splits_nonlinear
from complete_verifier.bab.refine import RefineSettings, can_refine, refine_boxes
from complete_verifier.bab.rounds import OnProgress
from complete_verifier.bab.search import ascent_settings, make_tiling, search
from complete_verifier.bab.settings import BabProgress, BabResult, BabSettings
from complete_verifier.bab.subproblems import OnCandidate
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Clock, Problem

_LOG = logging.getLogger(__name__)
TIME_LIMIT = "time limit"


@dataclass(frozen=True, slots=True)
class RefineShare:
    """Shares of the time left: for an attempt without refinement, and then for the refinement."""

    attempt: float
    refine: float


def refined_search(
    problem: Problem,
    start: IncompleteResult,
    settings: BabSettings,
    share: RefineShare | None,
    on_progress: OnProgress | None = None,
    on_candidate: OnCandidate | None = None,
    make_keeper: Callable[[IncompleteResult], Keeper | None] | None = None,
    resumed: bool = False,
) -> BabResult:
    """`search`, with refinement in between where ``share`` asks for it and the network allows it.

    Args:
        make_keeper: of the checkpoints, for the result that the search begins with. With checkpoints there is no
            attempt before the refinement: it would not be kept.
        resumed: ``start`` comes from a checkpoint, and was refined then.
    """
    if settings.nonlinear and splits_nonlinear(problem):
        return nonlinear_search(problem, start, settings, on_progress, make_keeper and make_keeper(start))
    if share is None or resumed or settings.synchronous or not can_refine(problem):
        return search(problem, start, settings, on_progress, on_candidate, make_keeper and make_keeper(start))
    began = time.monotonic()
    visited = rounds = 0
    if make_keeper is None:
        short = replace(problem, clock=Clock(began, share.attempt * max(0.0, problem.clock.left())))
        found = search(short, start, settings, on_progress, on_candidate)
        if found.stopped_by != TIME_LIMIT:
            return found
        visited, rounds = found.domains_visited, found.rounds
    device = start.lower.device
    refine = RefineSettings(
        seconds=share.refine * max(0.0, problem.clock.left()),
        ascent=ascent_settings(settings, device),
        tiling=make_tiling(problem, settings, device),
        seed=settings.seed,
    )

    def on_layer(number: int, before: int, after: int, leaves: int) -> None:
        _LOG.info("refined layer %d: %d of %d neurons still unstable, %d sub-problems", number, after, before, leaves)

    with torch.no_grad(), full_precision():
        better = refine_boxes(problem, start, refine, on_layer)
    if settings.max_iterations >= 0:  # a limit of the run, not of each part
        settings = replace(settings, max_iterations=max(0, settings.max_iterations - rounds))

    def progressed(progress: BabProgress) -> None:
        if on_progress is not None:  # of both parts together
            on_progress(
                replace(
                    progress,
                    round=progress.round + rounds,
                    domains_visited=progress.domains_visited + visited,
                    seconds=time.monotonic() - began,
                )
            )

    found = search(problem, better, settings, progressed, on_candidate, make_keeper and make_keeper(better))
    return replace(
        found,
        domains_visited=found.domains_visited + visited,
        rounds=found.rounds + rounds,
        seconds=time.monotonic() - began,
    )
