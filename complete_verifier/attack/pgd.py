"""The attack: the centres of the boxes, a scouting round, then descents in batches that fit memory and time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.numerics import full_precision
from complete_verifier.attack.descent import Descent
from complete_verifier.attack.objective import Accept, Best, Candidate
from complete_verifier.attack.pace import Deadline, Pace
from complete_verifier.attack.problems import Problems, graph_dtype, project
from complete_verifier.attack.scene import Scene
from complete_verifier.attack.scout import scout
from complete_verifier.attack.settings import AttackSettings
from complete_verifier.attack.team import Team
from complete_verifier.spec.property import Property

# Values of a network are kept for the way back, and their gradients exist beside them.
_COPIES_OF_VALUES = 3
# How long points take is measured on so many at once, unless that would take more than so many seconds. Not at all
# where a first evaluation takes more than this share of the time left.
_CALIBRATION_POINTS = 64
_CALIBRATION_SECONDS = 0.1
_CALIBRATION_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class AttackResult:
    """How an attack ended: the accepted candidate, the best point that was seen, and what it cost."""

    accepted: Candidate | None
    best: Candidate | None
    restarts: int  # random starts that were begun, for each problem, by all ranks
    steps: int  # gradient steps, summed over the batches; every rank takes as many


def attack(
    graph: Graph,
    target: Property | Problems,
    settings: AttackSettings,
    device: torch.device | str,
    deadline: Deadline,
) -> Candidate | None:
    """A point that violates all rows of some clause by the graph's own arithmetic, or None.

    Its ``x`` is float32 and lies in the region's box, rounded inwards. It is no counterexample before `confirm` has
    said so.

    Args:
        graph: on ``device``; gradients are taken to the input only.
        target: the property, or problems on sub-boxes (`Problems.narrowed`).
        deadline: seconds left; asked before every step.
    """
    return run_attack(graph, target, settings, device, deadline, lambda candidate: True).accepted


def run_attack(
    graph: Graph,
    target: Property | Problems,
    settings: AttackSettings,
    device: torch.device | str,
    deadline: Deadline,
    accept: Accept,
    context: DistributedContext | None = None,
) -> AttackResult:
    """`attack` with a say in what counts: a candidate that ``accept`` refuses is dropped and the search goes on.

    ``context``: all its ranks attack together, each from its own starts, and have the same result; None: this process
    by itself.
    """
    if isinstance(target, Property):
        target = Problems.from_property(target, graph.input_shape, graph_dtype(graph), device)
    team = Team.of(context)
    best, pace = Best(target, accept, team), Pace(deadline, target.lower.device, team)
    values = sum(node.size for node in graph.nodes) * target.lower.element_size()
    most_points = max(1, settings.batch_bytes // (_COPIES_OF_VALUES * values))
    with full_precision():
        clean = _evaluate_centres(graph, target, settings, best, pace, most_points)
        if clean is None:
            return AttackResult(None, None, 0, 0)
        scene = Scene(graph, target, settings, best, pace, clean, most_points, team)
        seeds = target.lower.new_empty((0, target.count, *graph.input_shape))
        if settings.scouting and settings.restarts:
            seeds = scout(scene)
            if settings.early_stop:
                best.offer()
        restarts, steps = _search(scene, seeds)
    best.offer()
    return AttackResult(best.accepted, best.nearest(), restarts, steps)


def _evaluate_centres(
    graph: Graph, problems: Problems, settings: AttackSettings, best: Best, pace: Pace, most_points: int
) -> Tensor | None:
    """Outputs at the centre of every box ``[G, O]``, tried for all clauses of the box. None: no time for them."""
    centre = project(problems.lower + (problems.upper - problems.lower) / 2, problems.lower, problems.upper)
    outputs = []
    for part in centre.split(most_points):
        if pace.no_time_for(0):
            return None
        outputs.append(_measured(graph, part, pace))
    clean = torch.cat(outputs)
    worst = problems.worst(problems.values(clean[problems.box]) + settings.tolerance)
    best.observe(slice(None), centre[problems.box].unsqueeze(0), worst.unsqueeze(0))
    if settings.early_stop:
        best.offer()
    return clean


def _measured(graph: Graph, x: Tensor, pace: Pace) -> Tensor:
    """Outputs at ``x``; the first time also measures how long points take, alone and a few at once."""
    calibrate = pace.unknown
    began = pace.clock()
    y = _outputs(graph, x)
    seconds = pace.slowest(pace.clock() - began)
    if not calibrate or seconds > _CALIBRATION_SHARE * pace.left():
        pace.note_evaluation(len(x), seconds)
        return y
    # The very first evaluation of a process warms up and says nothing.
    copies = 1
    for _ in range(2):
        began = pace.clock()
        _outputs(graph, x[:1].expand(copies, *x.shape[1:]))
        seconds = max(pace.slowest(pace.clock() - began), 1e-9)
        pace.note_evaluation(copies, seconds)
        copies = max(1, min(_CALIBRATION_POINTS, int(_CALIBRATION_SECONDS / seconds)))
    return y


def _outputs(graph: Graph, x: Tensor) -> Tensor:
    """``[N, *in] -> [N, O]``."""
    with torch.no_grad():
        return evaluate(graph, x).flatten(1)


def _search(scene: Scene, seeds: Tensor) -> tuple[int, int]:
    """Descents until one succeeds. Returns how many starts of each problem were begun, and the steps taken."""
    begun = steps = 0
    for index, starts in _batches(scene):
        if scene.best.finished or scene.pace.no_time_for(0):
            break
        descent = Descent(scene, index, starts, seeds)
        descent.run()
        begun, steps = starts.start - scene.team.index + scene.team.count * len(starts), steps + descent.steps
        if scene.settings.early_stop:
            scene.best.offer()
    return begun, steps


def _batches(scene: Scene) -> Iterator[tuple[Tensor, range]]:
    """Which problems are searched together from which of this rank's starts: all from one start before the next ones.

    Problems whose centre is nearest to a violation come first. The cut follows from memory and settings alone,
    unless a step would take too much of the time left. Every rank has as many starts as the others: where they do not
    divide, some begin one more than was asked for.
    """
    settings, team = scene.settings, scene.team
    order = scene.best.by_need()
    start = 0
    while start < settings.restarts:
        scene.pace.look()
        points = scene.pace.points_at_once(scene.most_points)
        width = min(scene.problems.count, points)
        left = -(-(settings.restarts - start) // team.count)
        height = min(points // width, settings.batch_size, left)
        for index in order.split(width):
            yield index, team.starts(start, height)
        start += team.count * height
