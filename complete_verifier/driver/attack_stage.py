"""The stages that look for a counterexample: what is one without a search, and the attack, ours or the user's."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from complete_verifier.attack.confirm import confirm
from complete_verifier.attack.problems import Problems
from complete_verifier.attack.search import find_counterexample
from complete_verifier.driver.choices import attack_settings
from complete_verifier.driver.questions import Question, may_violate
from complete_verifier.driver.run_state import RunState
from complete_verifier.driver.user_code import DEFAULTS
from complete_verifier.events import AttackEnded, Note
from complete_verifier.shortage import explained_out_of_memory

# An attack ends after this share of the time left, so that a proof has a chance where there is no counterexample.
ATTACK_SHARE = 0.4
# With more clauses than this, an attack on all of them is short: what bounds leave open is attacked at length then.
_LOWER = "lower attack.pgd_restarts"
MANY_CLAUSES, FIRST_ATTACK_SHARE = 200, 0.04


def violates_at_once(run: RunState, question: Question) -> bool:
    """Whether a counterexample needs no search."""
    return _example_violates(run, question) or _anything_violates(run, question)


def _example_violates(run: RunState, question: Question) -> bool:
    """Whether the example that a region was made around is a counterexample itself: it is misclassified."""
    if question.example is None or not may_violate(question, question.example):
        return False
    run.counterexample = confirm(question.judge, question.prop, question.example)
    if run.first_found():
        run.listener(Note("the example itself violates the property: the network misclassifies it"))
    return run.counterexample is not None


def _anything_violates(run: RunState, question: Question) -> bool:
    """Whether a clause says nothing about the output, so that every input of its region is a counterexample."""
    clauses, region = question.problem.clauses, question.problem.region
    free = torch.isinf(clauses.rhs).all(1)
    if not bool(free.any()):
        return False
    point = region.center()[clauses.region[free][0]]
    run.counterexample = confirm(question.judge, question.prop, point.double().cpu().numpy().reshape(-1))
    return run.first_found()


def has_many_clauses(question: Question) -> bool:
    """Whether there are so many clauses that most should be proved before they are attacked."""
    return len(question.problem.clauses.region) > MANY_CLAUSES


def attack(run: RunState, question: Question, open_clauses: Tensor | None, share: float = ATTACK_SHARE) -> bool:
    """Look for a counterexample to the clauses that are open (None: to all); True if one is confirmed.

    ``share``: of the time left, that it may take.
    """
    problem = question.problem
    if run.config.attack.attack_func != DEFAULTS["attack.attack_func"]:
        return _users_attack(run, question)
    if not problem.region.is_box:
        return False  # the attack projects onto boxes only
    limit = run.clock.left() * (1 - share)
    with run.phase("attack"), explained_out_of_memory(run.context, "attacking", _LOWER):
        began = time.monotonic()
        dtype, device = problem.clauses.c.dtype, run.context.device
        targets = Problems.from_property(question.searched, problem.graph.input_shape, dtype, device)
        if open_clauses is not None:
            targets = targets.select(open_clauses.nonzero().squeeze(-1))
        found = find_counterexample(
            problem.graph,
            question.prop,
            question.judge,
            attack_settings(run.config),
            device,
            lambda: run.clock.left() - limit,
            targets,
            problem.context,
        )
        run.counterexample = found.counterexample
        confirmed = run.first_found()
        seconds = time.monotonic() - began
        run.listener(AttackEnded(confirmed, found.attack.restarts, found.attack.steps, seconds))
    return confirmed


def _users_attack(run: RunState, question: Question) -> bool:
    """The user's own attack in place of ours."""
    began = time.monotonic()
    with run.phase("attack"):
        run.counterexample = run.user(question).attacked(run.config)
        confirmed = run.counterexample is not None
    run.listener(AttackEnded(confirmed, 0, 0, time.monotonic() - began))
    return confirmed
