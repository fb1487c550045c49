"""The incomplete stage: plain bounds for every clause, then alpha-CROWN for those that they leave open."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from auto_LiRPA.bounds.intermediate import NOTHING_GIVEN, Given
from auto_LiRPA.parallel.numerics import full_precision
from complete_verifier.events import BoundsFound, Listener, ignore
from complete_verifier.incomplete.first_bounds import first_bounds
from complete_verifier.incomplete.optimized_bounds import optimized_bounds
from complete_verifier.incomplete.regions import unstable_count
from complete_verifier.incomplete.replicas import on_time, sharers
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.incomplete.settings import IncompleteSettings, Method
from complete_verifier.problem import Problem
from complete_verifier.shortage import TILES, explained_out_of_memory

_NAMES: dict[Method, str] = {"alpha-crown": "CROWN", "crown": "CROWN", "init-crown": "CROWN"}
_LOWER = f"lower {TILES} or solver.build_batch_size"
_SHOWN = 10  # margins that are told to the listener

AfterCrown = Callable[[IncompleteResult], bool]


def run_incomplete(
    problem: Problem,
    settings: IncompleteSettings,
    on_event: Listener = ignore,
    after_crown: AfterCrown | None = None,
    given: Given = NOTHING_GIVEN,
) -> IncompleteResult:
    """Bound all clauses. A clause is proved only by a finite bound over boxes that can be trusted.

    Args:
        after_crown: called between CROWN and alpha-CROWN with what is known then, if clauses are open; True ends the
            stage there (an attack has found a counterexample).
        given: boxes of nodes that are known to be true, one batch element per region; the first bounds use them.

    Raises:
        OutOfTime: the deadline passed before the first bounds of all clauses were there.
        ConfigError: a bounding pass does not fit into memory; the line says which setting to lower.
    """
    began = time.monotonic()
    explained = explained_out_of_memory(problem.context, "bounding", _LOWER)
    with torch.no_grad(), full_precision(), explained:
        own, world = replace(problem, context=sharers(problem.context)), problem.context.world
        result = on_time(world, lambda: first_bounds(own, settings, given))
        seconds = world.largest(time.monotonic() - began)
        on_event(_event(_NAMES.get(settings.method, settings.method), problem, result))
        if settings.method != "alpha-crown" or bool(result.proven.all()):
            return result
        if after_crown is not None and after_crown(result):
            return result
        started = time.monotonic()

        def seconds_left() -> float:
            return min(problem.clock.left(), settings.max_seconds - (time.monotonic() - started))

        chosen = ~result.proven if settings.prune_after_crown else torch.ones_like(result.proven)
        result, iterations = optimized_bounds(
            problem, result, chosen, settings.max_rows, seconds_left, seconds, on_event
        )
        on_event(_event("alpha-CROWN", problem, result, iterations))
        return result


def _event(method: str, problem: Problem, result: IncompleteResult, iterations: int = 0) -> BoundsFound:
    margins = problem.clauses.margin(result.lower)
    return BoundsFound(
        method=method,
        margins=tuple(margins[:_SHOWN].tolist()),
        worst=float(margins.min()),
        proven=int(result.proven.sum()),
        clauses=len(margins),
        unstable=unstable_count(problem.graph, result.intermediate),
        iterations=iterations,
    )
