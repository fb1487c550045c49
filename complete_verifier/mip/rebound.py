"""Bounds and slopes of the open clauses over tightened boxes."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.parallel.numerics import full_precision
from complete_verifier.events import Listener
from complete_verifier.incomplete.optimized_bounds import optimized_bounds
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

# The boxes are fixed by now and only the final rows' slopes are optimised, which takes few iterations.
_ITERATIONS = 20
_LEAST_SECONDS = 1.0
_MAX_ROWS = 4096


def rebound(problem: Problem, start: IncompleteResult, seconds: float, on_event: Listener) -> IncompleteResult:
    """The open clauses bounded over the boxes of ``start``, which stay as they are; no bound gets looser."""
    until = time.monotonic() + max(seconds, _LEAST_SECONDS)
    alpha = replace(problem.bounds.alpha, mode="fixed", iterations=min(_ITERATIONS, problem.bounds.alpha.iterations))
    fixed = replace(problem, bounds=replace(problem.bounds, alpha=alpha))

    def seconds_left() -> float:
        return min(problem.clock.left(), until - time.monotonic())

    try:
        with torch.no_grad(), full_precision():
            found, _ = optimized_bounds(fixed, start, ~start.proven, _MAX_ROWS, seconds_left, 0.0, on_event)
    except OutOfTime:
        return start
    return found
