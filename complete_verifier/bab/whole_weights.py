"""Searches of small networks hold all weights on every rank: what is fetched by each pass would rule their time."""

from __future__ import annotations

from dataclasses import replace

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.parallel.groups import alone
from auto_LiRPA.parallel.store import MIB, LocalStore
from auto_LiRPA.parallel.whole import whole
from complete_verifier.bab.lockstep import is_whole
from complete_verifier.problem import Problem


def with_small_weights(problem: Problem, most: float | None = None) -> Problem:
    """The problem with whole weights on this rank, if they are ``most`` bytes at most; None: one block.

    A rank that holds whole weights keeps no step with others, and its passes can be captured. Parts of a network that
    is spread over ranks (mode tp) stay where they are. All ranks that share the weights call it together, and decide
    alike: by the model and the settings.
    """
    context, graph = problem.context, problem.graph
    most = context.settings.block_mib * MIB if most is None else most
    if context.mode == "tp" or is_whole(graph) or _weight_bytes(graph) > most:
        return problem
    store = LocalStore(context.settings.block_mib)
    graph = graph.mapped(lambda tensor: tensor, lambda weight: store.place(whole(weight)))
    context = replace(context, mode="single", weights=alone(context.counters), lockstep=False)
    return replace(problem, graph=graph, context=context)


def _weight_bytes(graph: Graph) -> int:
    """Of all weights, each counted once."""
    return sum({id(w): w.numel * w.dtype.itemsize for w in graph.weights}.values())
