"""`general.complete_verifier: bab-refine`: intermediate bounds of unstable neurons by programs, before any splitting.

Layer by layer, each unstable neuron is minimised and maximised over the program of what lies below it; later layers'
boxes are then bounded anew over the tightened ones. A new box is always intersected with the old one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch

from auto_LiRPA.bounds.intermediate import Boxes, Given, crown_boxes
from auto_LiRPA.bounds.interval import affine_nodes, nonlinear_inputs
from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.base import NonlinearOperator
from auto_LiRPA.operators.piecewise import Abs
from auto_LiRPA.values import Interval
from complete_verifier.events import Listener, Note
from complete_verifier.incomplete.regions import tightened, trusted
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.mip.encode import Unsuitable, check_encodable
from complete_verifier.mip.layer import solve_layer
from complete_verifier.mip.pool import SolverPool
from complete_verifier.mip.rebound import rebound
from complete_verifier.mip.regions import RegionPrograms, finite
from complete_verifier.mip.settings import MipSettings
from complete_verifier.problem import Problem

SecondsLeft = Callable[[], float]

# Of the refinement's time, for bounding the clauses anew after a layer.
_REBOUND_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Refined:
    """``result``: what the search starts from. ``tightened``: neurons whose box shrank; ``fixed``: now stable ones."""

    result: IncompleteResult
    tightened: int
    fixed: int
    seconds: float


def refine_neurons(
    problem: Problem,
    start: IncompleteResult,
    settings: MipSettings,
    on_event: Listener,
    pool: SolverPool | None = None,
) -> Refined:
    """Tighten the boxes of the regions that have open clauses, until so much of the run's time has passed.

    The result is never looser than ``start``. Where nothing can be done, a line says why and ``start`` comes back.
    """
    began = time.monotonic()
    clock = problem.clock

    def seconds_left() -> float:
        return min(clock.left(), settings.refine_share * clock.timeout_s - clock.elapsed())

    with nullcontext(pool) if pool else SolverPool(settings.processes, seconds_left) as solvers:
        stage = _Refinement(problem, settings, on_event, seconds_left, solvers, start)
        try:
            check_encodable(problem.graph, problem.region)
            stage.run()
        except Unsuitable as error:
            on_event(Note(f"neurons are not refined: {error}"))
        except OutOfTime:
            pass  # what was found by then counts
    return Refined(stage.result, stage.tightened, stage.fixed, time.monotonic() - began)


@dataclass(slots=True)
class _Refinement:
    """The boxes at hand are always those of ``result``."""

    problem: Problem
    settings: MipSettings
    on_event: Listener
    seconds_left: SecondsLeft
    pool: SolverPool
    result: IncompleteResult
    tightened: int = 0
    fixed: int = 0

    def run(self) -> None:
        problem, graph = self.problem, self.problem.graph
        programs = RegionPrograms(problem, self.settings.formulation)
        affine = affine_nodes(graph)
        sources = [i for i in nonlinear_inputs(graph) if i not in affine]
        good = trusted(self.result.intermediate.boxes)
        regions = torch.unique(problem.clauses.region[~self.result.proven]).tolist()
        for done, region in enumerate(regions):
            boxes = self.result.intermediate.boxes
            if (good is not None and not bool(good[region])) or not finite(boxes, region):
                continue
            share = self.seconds_left() / (len(regions) - done)
            self._region(region, sources, programs, time.monotonic() + share)
            if bool(self.result.proven.all()):
                return

    def _region(self, region: int, sources: list[int], programs: RegionPrograms, until: float) -> None:
        """Layer after layer, each with an equal share of the time that is left for the region."""
        for position, source in enumerate(sources):
            left = until - time.monotonic()
            if left <= 0:
                return
            layer_until = time.monotonic() + left / (len(sources) - position)
            if self._layer(region, source, programs, layer_until):
                rebound_seconds = _REBOUND_SHARE * (until - time.monotonic())
                self.result = rebound(self.problem, self.result, rebound_seconds, self.on_event)
                mine = self.problem.clauses.region == region
                if bool(self.result.proven[mine].all()):
                    return

    def _layer(self, region: int, source: int, programs: RegionPrograms, until: float) -> bool:
        """Tighten one layer's neurons, and then what later layers' boxes gain; True if anything shrank."""
        graph, boxes = self.problem.graph, self.result.intermediate.boxes
        old = Interval(boxes[source].lower[region : region + 1], boxes[source].upper[region : region + 1])
        index = _undecided(graph, source, old)
        if len(index) == 0:
            return False
        began = time.monotonic()
        cut = window_cut(graph, source, self.settings.window)
        encoding, _ = programs.encoded(region, boxes, source, cut)
        hinge = self.settings.early_stop and _hinges_at_zero(graph, source)
        new = solve_layer(self.pool, encoding, old, index, self.settings, hinge, until)
        shrunk = ((new.lower > old.lower) | (new.upper < old.upper)).sum().item()
        stable = _undecided(graph, source, new)
        self.tightened += int(shrunk)
        self.fixed += len(index) - len(stable)
        self.on_event(
            Note(
                f"Refined {graph.nodes[source].name}: {shrunk} of {len(index)} neurons tightened,"
                f" {len(index) - len(stable)} made stable ({time.monotonic() - began:.1f} s)"
            )
        )
        if not shrunk:
            return False
        self._take(region, source, new)
        return True

    def _take(self, region: int, source: int, new: Interval) -> None:
        """Put a layer's new boxes in place, and bound the layers after it by CROWN over them."""
        problem, graph = self.problem, self.problem.graph
        at = torch.tensor([region], device=new.lower.device)
        known: dict[int, Interval] = {
            i: Interval(b.lower[at], b.upper[at]) for i, b in self.result.intermediate.boxes.items()
        }
        known[source] = new
        found: Boxes = crown_boxes(
            graph,
            problem.region.pick(at),
            problem.context,
            problem.bounds,
            Given(fixed={i: b for i, b in known.items() if i <= source}, reference=known),
        ).boxes
        intermediate = tightened(graph, self.result.intermediate, at, found)
        self.result = replace(self.result, intermediate=intermediate, slopes={})


def _undecided(graph: Graph, source: int, box: Interval) -> list[int]:
    """Neurons whose bounds any of the node's nonlinear users would like tighter."""
    mask = torch.zeros_like(box.lower, dtype=torch.bool)
    for user in graph.users[source]:
        op = graph.nodes[user].op
        if user <= graph.output and isinstance(op, NonlinearOperator):
            mask = mask | op.needs_tightening(box)[0]
    found: list[int] = mask.flatten().nonzero().squeeze(-1).tolist()
    return found


def _hinges_at_zero(graph: Graph, source: int) -> bool:
    """Whether the sign of these neurons is all that their users ask for before they become linear."""
    users = [graph.nodes[user].op for user in graph.users[source] if user <= graph.output]
    return all(isinstance(op, Relu | Abs) for op in users if isinstance(op, NonlinearOperator))


def window_cut(graph: Graph, target: int, window: int) -> frozenset[int]:
    """Nonlinear nodes below ``target`` that more than ``window`` nonlinear layers lie above of (none where -1)."""
    if window < 1:
        return frozenset()
    depth = [0] * len(graph.nodes)
    for node in graph.nodes[1:]:
        own = isinstance(node.op, NonlinearOperator)
        depth[node.id] = max((depth[i] for i in node.inputs), default=0) + own
    return frozenset(
        i
        for i in graph.ancestors[target]
        if isinstance(graph.nodes[i].op, NonlinearOperator) and depth[i] <= depth[target] - window
    )
