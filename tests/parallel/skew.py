"""Searches on ranks that dawdle: every rank sleeps at random before it takes part in a collective."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch

from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.values import Region
from complete_verifier.bab.agreement import Agreed
from complete_verifier.bab.rounds import Rounds
from complete_verifier.bab.search import search
from complete_verifier.bab.settings import BabResult, BabSettings
from complete_verifier.incomplete.settings import IncompleteSettings
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.problem import Clauses, Clock, Problem
from tests.parallel.networks import BLOCK_MIB

SLEEP_S = 0.005
CLOCKS_APART_S = 0.05
BOUNDS = BoundSettings(alpha=AlphaSettings(iterations=3, lr_alpha=0.25))
SETTINGS = BabSettings(
    batch_size=3, min_batch_ratio=1.0, iterations=3, lr_alpha=0.1, lr_beta=0.1, method="babsr", record_ledger=True
)


class Dawdler:
    """Sleeps up to 5 ms before a collective, now and then; a rank may be slow before every one."""

    def __init__(self, seed: int, rank: int) -> None:
        self._random = random.Random(1000 * seed + rank)
        self.chance = 0.5
        self.slow = False

    def entering(self, kind: str, members: tuple[int, ...]) -> None:
        # a search fetches hundreds of blocks a round: there a few sleeps do
        often = self.chance if kind != "weights" else self.chance / 20
        if self.slow or self._random.random() < often:
            time.sleep(SLEEP_S * self._random.random())

    def left(self) -> None:
        """Nothing to do."""

    def at(self, step: str, patient: bool = False) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class Question:
    """A small problem with its exact answer."""

    graph: Graph
    region: Region
    clauses: Clauses
    holds: bool


@dataclass(frozen=True)
class Setting:
    """How the ranks share a search. ``seconds``: of the longest deadline; one rank's clock is behind the last one's."""

    mode: Literal["single", "fsdp"]
    synchronous: bool
    seconds: float = 1e9


@dataclass(frozen=True)
class Case:
    """``rounds`` of every setting, over all questions in turn."""

    questions: list[Question]
    plan: list[tuple[Setting, int]]
    seed: int


@dataclass(frozen=True)
class Ended:
    """One search on one rank."""

    setting: Setting
    question: int
    closed: bool
    stopped_by: str
    rounds: int
    visited: int
    confirmed: int  # calls with a counterexample that was one
    ahead: int  # rounds that began before the last one was known


def run(case: Case) -> list[Ended]:
    """All searches of this rank."""
    ended: list[Ended] = []
    rank = DistributedContext.from_env(ParallelSettings(domains="shard", threads=1, timeout_s=20)).rank
    dawdler = Dawdler(case.seed, rank)
    for setting, rounds in case.plan:
        settings = ParallelSettings(
            mode=setting.mode, rows="replicate", domains="shard", block_mib=BLOCK_MIB, threads=1, timeout_s=20
        )
        context = DistributedContext.from_env(settings, observer=dawdler)
        done = turn = 0
        while done < rounds:
            number = turn % len(case.questions)
            dawdler.slow = turn % (2 * context.world_size) == 2 * rank  # each is the slow one now and then
            one = _search(setting, case.questions[number], number, context, turn)
            ended.append(one)
            done, turn = done + max(1, one.rounds), turn + 1
    return ended


def _search(setting: Setting, question: Question, number: int, context: DistributedContext, turn: int) -> Ended:
    seconds, hurried = setting.seconds, setting.seconds < 1e9
    if hurried:  # it ends at another place each time, and not at the same time for all
        seconds = seconds * (1 + turn % 8) / 8 + CLOCKS_APART_S * ((context.rank + turn) % context.world_size)
    graph = question.graph.stored(context.make_store())
    problem = Problem(graph, question.region, question.clauses, context, BOUNDS, Clock(time.monotonic(), 1e9))
    confirmed = [0]

    def confirm(x: np.ndarray) -> bool:
        spec = question.clauses
        y = evaluate(question.graph, torch.as_tensor(x).unsqueeze(0).to(spec.c)).flatten()
        real = bool(((spec.c @ y <= spec.rhs + 1e-5).all(1)).any())
        confirmed[0] += real
        return real

    start = run_incomplete(problem, IncompleteSettings(method="crown"))
    late = replace(problem, clock=Clock(time.monotonic(), seconds))
    settings = replace(SETTINGS, synchronous=setting.synchronous, batch_size=1 if hurried else SETTINGS.batch_size)
    ahead, hear = [0], Rounds._hear

    def heard(self: Rounds[Any], *given: Any) -> Agreed:
        known = hear(self, *given)
        ahead[0] += self._flying is not None
        return known

    with mock.patch.object(Rounds, "_hear", heard):
        found: BabResult = search(late, start, settings, on_candidate=confirm)
    return Ended(
        setting, number, found.closed, found.stopped_by, found.rounds, found.domains_visited, confirmed[0], ahead[0]
    )
