"""Cheap looks before the descents: random points and output-diversified ones of every box, shared by its clauses.

A clause's descents stall in optima of its own margin; points that left in other directions of the output space often
lie beyond. All clauses of a box judge the same points, so that this costs a few percent of the descents.

Shape letters: N points of the pool, G boxes, P problems, K rows, O outputs, S seeds, ``*in`` the input's shape.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.operators.activation import Relu
from complete_verifier.attack.evolve import Elite, evolve
from complete_verifier.attack.problems import Problems, project
from complete_verifier.attack.scene import Scene, generator, gradient_of

_MOST_RANDOM_POINTS = 1024
_DIVERSIFIED_PER_RESTART = 2
_DIVERSIFIED_STEPS = 5
# Of a box's side, in one diversifying step.
_DIVERSIFIED_STEP = 0.25
# The slope that a ReLU is given below zero for directions only: a network that is dead all over a box (all neurons of
# a layer off, output constant) has no gradient there, and its live parts are found no other way.
_LEAK = 0.01
# Random local search pays where there are few inputs. There it finds what gradients miss (narrow or dead regions).
_MOST_INPUTS_TO_EVOLVE = 64
_EVOLVED_PER_RESTART = 8
_MOST_EVOLVED = 256
# Neither part may take more than this share of the time left.
_SHARE_OF_TIME = 0.2
# Tells these generators from those of the descents, whose first word is a small number.
_WORD = 2**32 - 1


def scout(scene: Scene) -> Tensor:
    """The best points seen, as starts for the descents: ``[S, P, *in]``, S half of this rank's restarts.

    What it finds goes to the scene's best points; the search may be over afterwards. Ranks look at points of their own.
    """
    problems, settings, team = scene.problems, scene.settings, scene.team
    centre = problems.lower + (problems.upper - problems.lower) / 2
    room = settings.batch_bytes // max(1, problems.count * centre[0].numel() * centre.element_size())
    count = min(len(range(team.index, settings.restarts // 2, team.count)), room)
    seeds = project(centre, problems.lower, problems.upper)[problems.box].expand(count, *_shape(problems)).clone()
    pool = -(-min(_MOST_RANDOM_POINTS, max(1, settings.restarts * settings.steps // 2)) // team.count)
    left = scene.pace.left()
    for part in scene.best.by_need().split(max(1, scene.most_points // pool)):
        if scene.must_stop(0, 0) or scene.pace.left() < (1 - _SHARE_OF_TIME) * left:
            break
        elite = _look_around(scene, part, pool)
        if problems.lower[0].numel() <= _MOST_INPUTS_TO_EVOLVE:
            elite = evolve(scene, part, elite, _generator(scene, 1, part), _SHARE_OF_TIME)
        seeds[: elite.x.shape[0], part] = elite.best(count)
    return seeds


def _shape(problems: Problems) -> tuple[int, ...]:
    return (problems.count, *problems.lower.shape[1:])


def _generator(scene: Scene, purpose: int, index: Tensor) -> torch.Generator:
    """The generator of this rank for some problems; the first rank's is that of a process by itself."""
    rank = (scene.team.index,) if scene.team.index else ()
    return generator(scene, _WORD, purpose, int(index[0]), *rank)


def _look_around(scene: Scene, index: Tensor, pool: int) -> Elite:
    """The best of random and diversified points for each of the problems ``index``."""
    problems = scene.problems.select(index)
    boxes, local = problems.box.unique(return_inverse=True)
    lower, upper = scene.problems.lower[boxes], scene.problems.upper[boxes]
    random = _generator(scene, 0, index)
    restarts = -(-scene.settings.restarts // scene.team.count)
    pool = max(1, min(pool, scene.pace.evaluations_in(_SHARE_OF_TIME / 2) // len(boxes)))
    size = (pool, *lower.shape)
    uniform = torch.rand(size, generator=random, dtype=lower.dtype, device=lower.device)
    points = [project(lower + uniform * (upper - lower), lower, upper)]
    began = scene.pace.clock()
    outputs = [_outputs(scene, points[0])]
    scene.pace.note_evaluation(pool * len(boxes), scene.pace.clock() - began)
    diversified = points[0][: _DIVERSIFIED_PER_RESTART * restarts]
    for x, y in _diversify(scene, diversified, lower, upper, random):
        points.append(x)
        outputs.append(y)
    x, y = torch.cat(points), torch.cat(outputs)
    values = problems.values(y[:, local]) + scene.settings.tolerance
    worst = problems.worst(values)
    deepest, first = worst.min(0)
    scene.best.observe(index, x[first, local].unsqueeze(0), deepest.unsqueeze(0))
    count = min(_MOST_EVOLVED, _EVOLVED_PER_RESTART * restarts, len(x))
    return Elite.choose(x, local, values, worst, count)


def _diversify(
    scene: Scene, x: Tensor, lower: Tensor, upper: Tensor, random: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Points ``[N, G, *in]`` driven along random directions of the output space, and their outputs, after each step.

    Source: Tashiro, Song, Ermon, Diversity can be transferred: output diversification for white- and black-box
    attacks (2020); the leak is ours.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    graph = leaky(scene.graph)
    shape = (*x.shape[:2], scene.clean.shape[-1])
    direction = 2 * torch.rand(shape, generator=random, dtype=x.dtype, device=x.device) - 1
    for _ in range(min(_DIVERSIFIED_STEPS, scene.settings.steps)):
        if scene.pace.no_time_for(x.shape[0] * x.shape[1]):
            break
        gradient = _along(graph, x, direction, scene.most_points)
        x = project(x + _DIVERSIFIED_STEP * (upper - lower) * gradient.sign(), lower, upper)
        seen.append((x, _outputs(scene, x)))
    return seen


def leaky(graph: Graph) -> Graph:
    """The graph with a small slope below zero in every plain ReLU: its gradients lead out of dead regions."""
    dead = {node.id for node in graph.nodes if isinstance(node.op, Relu) and node.op.leak == 0}
    return replace(graph, nodes=tuple(replace(n, op=Relu(_LEAK)) if n.id in dead else n for n in graph.nodes))


def _along(graph: Graph, x: Tensor, direction: Tensor, most_points: int) -> Tensor:
    """Gradient of ``direction . y`` by x ``[N, G, *in]``; in parts that fit memory."""
    rows = max(1, most_points // x.shape[1])
    gradients = []
    for part, towards in zip(x.split(rows), direction.split(rows), strict=True):
        with torch.enable_grad():
            point = part.detach().requires_grad_()
            y = evaluate(graph, point.flatten(0, 1)).flatten(1)
            gradients.append(gradient_of((towards.flatten(0, 1) * y).sum(), point))
    return torch.cat(gradients)


def _outputs(scene: Scene, x: Tensor) -> Tensor:
    """``[N, G, *in] -> [N, G, O]`` in parts that fit memory."""
    with torch.no_grad():
        return torch.cat([scene.outputs(part) for part in x.split(max(1, scene.most_points // x.shape[1]))])
