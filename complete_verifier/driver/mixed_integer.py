"""The stages `mip` and `bab-refine` of a run: settings, candidates that the original network judges, and fall-backs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from complete_verifier.attack.confirm import confirm_inside
from complete_verifier.config import Config
from complete_verifier.driver.questions import Question
from complete_verifier.events import Listener, Note
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.mip.clauses import MipResult, solve_clauses
from complete_verifier.mip.encode import Unsuitable
from complete_verifier.mip.first_rank import Portable, for_first_rank
from complete_verifier.mip.refine import Refined, refine_neurons
from complete_verifier.mip.settings import MipSettings
from complete_verifier.problem import Problem
from complete_verifier.spec.counterexample import Counterexample
from complete_verifier.together import first_rank


def mip_settings(config: Config) -> MipSettings:
    """For both stages."""
    mip = config.solver.mip
    return MipSettings(
        processes=mip.parallel_solvers or None,
        formulation=mip.formulation,
        early_stop=mip.early_stop,
        skip_unsafe=mip.skip_unsafe,
        neuron_seconds=mip.refine_neuron_timeout,
        refine_share=mip.refine_neuron_time_percentage,
        window=mip.sliding_window,
    )


def solve_exactly(
    question: Question, start: IncompleteResult, config: Config, listener: Listener
) -> tuple[MipResult | None, Counterexample | None]:
    """Decide the open clauses by their programs; no result where there are none to be had: a line says why.

    The first rank solves; all have the result.
    """
    context = question.problem.context
    found: Counterexample | None = None

    def on_candidate(x: np.ndarray) -> bool:
        nonlocal found
        found = confirm_inside(question.judge, question.prop, x)
        return found is not None

    def solved(problem: Problem) -> MipResult | str:
        try:
            result = solve_clauses(problem, start, mip_settings(config), listener, on_candidate)
        except Unsuitable as error:
            return str(error)
        return replace(result, proven=result.proven.cpu())

    try:
        problem = for_first_rank(question.problem)
    except Unsuitable as error:
        result: MipResult | str = str(error)
    else:
        result, found = first_rank(context.world, lambda: (solved(problem), found))
    if isinstance(result, str):
        listener(Note(f"no mixed-integer program: {result}; branch and bound instead"))
        return None, None
    return replace(result, proven=result.proven.to(start.proven.device)), found


def refined(question: Question, start: IncompleteResult, config: Config, listener: Listener) -> IncompleteResult:
    """What the search starts from once unstable neurons are tightened: the first rank does it, all have the result."""
    world = question.problem.context.world
    try:
        problem = for_first_rank(question.problem)
    except Unsuitable as error:
        listener(Note(f"neurons are not refined: {error}"))
        return start
    if world.size == 1:
        return _told(refine_neurons(problem, start, mip_settings(config), listener), listener)

    def portable() -> Portable:
        return Portable.of(_told(refine_neurons(problem, start, mip_settings(config), listener), listener))

    return first_rank(world, portable).unpacked(question.problem, start)


def _told(done: Refined, listener: Listener) -> IncompleteResult:
    listener(
        Note(
            f"{done.tightened} bounds of neurons tightened, {done.fixed} neurons made stable in {done.seconds:.1f} s;"
            f" {int(done.result.proven.sum())} of {len(done.result.proven)} clauses are proved"
        )
    )
    return done.result
