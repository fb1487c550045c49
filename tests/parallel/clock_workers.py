"""Ranks that bound the same rows or domains together, one of whose clocks runs out on its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from auto_LiRPA.bounds.alpha import alpha_crown
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings, IntermAlpha
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.tensor_parallel import tensor_parallel
from auto_LiRPA.parallel.axes import Mode
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.whole import whole
from complete_verifier.bab.nonlinear_search import nonlinear_search
from complete_verifier.bab.settings import BabSettings
from complete_verifier.incomplete.settings import IncompleteSettings
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.problem import Clauses, Clock, Problem
from tests.parallel.tp_networks import NETS, question, rows

ALPHA: tuple[IntermAlpha, ...] = ("fixed", "stream")
_MODES: tuple[Mode, ...] = ("fsdp", "tp")
_LOOKS = 3  # at the clock of the last rank; it has no time left at the next one
_DTYPE = torch.float64


def apart(case: None) -> dict[str, Any]:
    """What each rank came to."""
    found: dict[str, Any] = {}
    for mode in _MODES:
        context = DistributedContext.from_env(
            ParallelSettings(
                mode=mode, rows="replicate", domains="replicate", threads=1, block_mib=1e-6, tile_rows=4, timeout_s=20
            )
        )
        for alpha in ALPHA:
            found[f"{mode} {alpha}"] = _bounds(context, alpha)
        found[f"{mode} nonlinear"] = _search(context)
    context.close()
    return found


def _here(name: str, context: DistributedContext) -> Graph:
    graph = NETS[name](_DTYPE)
    if context.mode == "tp":
        return tensor_parallel(graph, context)
    store = context.make_store()
    return graph.mapped(lambda tensor: tensor, lambda weight: store.place(whole(weight)))


def _clock(context: DistributedContext) -> Callable[[], float]:
    """The last rank's runs out after a few looks."""
    looks = 0

    def left() -> float:
        nonlocal looks
        looks += 1
        return -1.0 if context.rank == context.world_size - 1 and looks > _LOOKS else 100.0

    return left


def _bounds(context: DistributedContext, mode: IntermAlpha) -> list[torch.Tensor]:
    graph = _here("mlp3", context)
    settings = BoundSettings(alpha=AlphaSettings(mode=mode, iterations=8, lr_alpha=0.25))
    region = question(NETS["mlp3"](_DTYPE), _DTYPE)
    found = alpha_crown(graph, region, rows(graph, _DTYPE), context, settings, seconds_left=_clock(context))
    boxes = [side for box in found.intermediate.boxes.values() for side in (box.lower, box.upper)]
    return [found.lower, *boxes]


def _search(context: DistributedContext) -> tuple[Any, ...]:
    """A network with a sigmoid, whose clause nothing settles."""
    plain, graph = NETS["elementwise"](_DTYPE), _here("elementwise", context)
    region = question(plain, _DTYPE).pick(torch.zeros(1, dtype=torch.long))
    zero = torch.zeros(1, 1, dtype=_DTYPE)
    clauses = Clauses(rows(plain, _DTYPE)[:, :1], zero, torch.zeros(1, dtype=torch.long), zero.bool())
    bounds = BoundSettings(alpha=AlphaSettings(iterations=2))
    problem = Problem(graph, region, clauses, context, bounds, Clock(time.monotonic(), 1e6))
    start = run_incomplete(problem, IncompleteSettings())
    middle = start.lower + 0.05  # closed only after some splits, if at all
    problem = replace(problem, clauses=replace(clauses, rhs=middle))
    start = replace(start, proven=problem.clauses.proven(start.lower))
    assert not bool(start.proven.any())
    late: Any = SimpleNamespace(left=_clock(context))
    settings = BabSettings(batch_size=4, iterations=4, lr_alpha=0.1, lr_beta=0.1, max_iterations=30)
    found = nonlinear_search(replace(problem, clock=late), start, settings)
    return found.closed, found.stopped_by, found.domains_visited, found.rounds, found.worst_bound
