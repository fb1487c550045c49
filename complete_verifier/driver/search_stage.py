"""The stages that decide what bounds leave open: branch and bound, mixed-integer programs, the user's own verifier."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from complete_verifier.attack.confirm import confirm_inside
from complete_verifier.bab.keeper import Keeper
from complete_verifier.bab.refined_search import refined_search
from complete_verifier.bab.settings import BabProgress, BabResult
from complete_verifier.driver.choices import bab_settings, refine_share
from complete_verifier.driver.input_splits import notes, search_input, splits_inputs
from complete_verifier.driver.mixed_integer import refined, solve_exactly
from complete_verifier.driver.questions import Question
from complete_verifier.driver.run_state import RunState
from complete_verifier.events import Note, SearchProgressed
from complete_verifier.incomplete.regions import trusted
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.input_bab.settings import InputBabProgress, InputBabResult
from complete_verifier.outcome import Outcome, Verdict
from complete_verifier.shortage import TILES, explained_out_of_memory

_LOG = logging.getLogger(__name__)

BAB_TIME_LIMIT = "time limit"  # the search's word for the deadline
_LOWER = f"lower solver.batch_size or {TILES}"
_LOWER_MIP = "lower solver.mip.parallel_solvers"


def decided(run: RunState, question: Question, start: IncompleteResult) -> Outcome:
    """What `general.complete_verifier` makes of the clauses that are open."""
    match run.config.general.complete_verifier:
        case "skip":
            why = "no complete verifier (general.complete_verifier: skip)"
            return Outcome(verdict=Verdict.UNKNOWN, stopped_by=why)
        case text if text.lstrip().startswith("Customized"):
            return _users_verdict(run, question)
        case "mip":
            exact = _mip(run, question, start)
            if exact is not None:
                return exact
        case "bab-refine" if not splits_inputs(run.config):
            with run.phase("mip"), explained_out_of_memory(run.context, "refining", _LOWER):
                start = refined(question, start, run.config, run.listener)
            if bool(start.proven.all()):
                run.status = "safe-incomplete-refine"
                return Outcome(verdict=Verdict.HOLDS, stopped_by="bounds over refined neurons prove every clause")
    return search(run, question, start)


def _users_verdict(run: RunState, question: Question) -> Outcome:
    """What the user's own verifier says. A `sat` of it counts as unknown: it names no point that could be checked.

    Its proof is its own affair, and the status says whose it is.
    """
    with run.phase("bab"):
        status = run.user(question).verified(run.config)
    why = f"the user's verifier (general.complete_verifier) says {status}"
    if status.startswith("safe") or status == Verdict.HOLDS.value:
        run.status = status if status.startswith("safe") else "safe"
        return Outcome(verdict=Verdict.HOLDS, stopped_by=why)
    return Outcome(verdict=Verdict.UNKNOWN, stopped_by=why)


def _mip(run: RunState, question: Question, start: IncompleteResult) -> Outcome | None:
    """Mixed-integer programs of the clauses that are open; None where there are no such programs."""
    run.status = "unknown-mip"
    with run.phase("mip"), explained_out_of_memory(run.context, "solving programs", _LOWER_MIP):
        found, run.counterexample = solve_exactly(question, start, run.config, run.listener)
    if found is None:
        run.status = "unknown"
        return None
    if run.first_found():
        return run.violated("unsafe-mip")
    if bool(found.proven.all()):
        run.status = "safe-mip"
        return Outcome(verdict=Verdict.HOLDS, stopped_by=found.stopped_by)
    if found.out_of_time:
        return Outcome(verdict=Verdict.TIMEOUT, stopped_by=run.time_limit)
    return Outcome(verdict=Verdict.UNKNOWN, stopped_by=found.stopped_by)


def search(run: RunState, question: Question, start: IncompleteResult, resumed: bool = False) -> Outcome:
    """Branch and bound on the clauses that are open."""
    good = trusted(start.intermediate.boxes)
    if good is not None and not bool(good[question.problem.clauses.region[~start.proven]].all()):
        return Outcome(
            verdict=Verdict.UNKNOWN, stopped_by="bounds are NaN or cross: does the network overflow? try double_fp"
        )
    for line in notes(run.config):
        run.listener(Note(line))
    found: BabResult | InputBabResult
    with run.phase("bab"), explained_out_of_memory(run.context, "searching", _LOWER):
        if splits_inputs(run.config) and question.problem.region.is_box:
            found = _input_splits(run, question, start)
        else:
            found = _activation_splits(run, question, start, resumed)
    run.progress = BabProgress(found.rounds, 0, found.domains_visited, found.worst_bound, found.seconds)
    if run.first_found():
        return run.violated("unsafe-bab")
    if found.closed:
        run.status = "safe"
        return Outcome(verdict=Verdict.HOLDS, stopped_by=found.stopped_by)
    verdict = Verdict.TIMEOUT if found.stopped_by == BAB_TIME_LIMIT else Verdict.UNKNOWN
    return Outcome(verdict=verdict, stopped_by=found.stopped_by)


def _input_splits(run: RunState, question: Question, start: IncompleteResult) -> InputBabResult:
    if run.keeping is not None:
        run.listener(Note("checkpoints are written where neurons are split, not where inputs are"))
    found, run.counterexample = search_input(
        question, start, run.config, run.listener, lambda progress: _progressed(run, progress)
    )
    return found


def _activation_splits(run: RunState, question: Question, start: IncompleteResult, resumed: bool) -> BabResult:
    keeping = run.keeping

    def keeper(begun: IncompleteResult) -> Keeper | None:
        return None if keeping is None else keeping.keeper(question.problem, begun)

    def on_candidate(x: np.ndarray) -> bool:
        found = confirm_inside(question.judge, question.prop, x.reshape(-1))
        run.counterexample = found or run.counterexample  # a later leaf's point that is none takes nothing back
        return found is not None

    return refined_search(
        question.problem,
        start,
        # --debug: `unsat` has to have leaves that cover the root
        replace(bab_settings(run.config), record_ledger=_LOG.isEnabledFor(logging.DEBUG)),
        refine_share(run.config),
        lambda progress: _progressed(run, progress),
        on_candidate,
        None if keeping is None else keeper,
        resumed,
    )


def _progressed(run: RunState, progress: BabProgress | InputBabProgress) -> None:
    run.progress = progress
    run.listener(
        SearchProgressed(
            progress.round, progress.domains_open, progress.domains_visited, progress.worst_bound, progress.seconds
        )
    )
