"""Cheap looks before the descents: random points and output-diversified ones of every box, shared by its clauses.

A clause's descents stall in optima of its own margin; points that left in other directions of the output space often
lie beyond. All clauses of a box judge the same points, so that this costs a few percent of the descents.

Shape letters: N points of the pool, G boxes, P problems, K rows, O outputs, S seeds, ``*in`` the input's shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from complete_verifier.attack.evolve import Elite, evolve
from complete_verifier.attack.problems import Problems, project
from complete_verifier.attack.scene import Scene, generator, gradient_of

_MOST_RANDOM_POINTS = 1024
_DIVERSIFIED_PER_RESTART = 2
_DIVERSIFIED_STEPS = 5
# Of a box's side, in one diversifying step.
_DIVERSIFIED_STEP = 0.25
# Random local search pays where there are few inputs. There it finds what gradients miss (narrow or dead regions).
_MOST_INPUTS_TO_EVOLVE = 64
_EVOLVED_PER_RESTART = 4
_MOST_EVOLVED = 128
# Neither part may take more than this share of the time left.
_SHARE_OF_TIME = 0.2
# Tells these generators from those of the descents, whose first word is a small number.
_WORD = 2**32 - 1


def scout(scene: Scene) -> Tensor:
    """The best points seen, as starts for the descents: ``[S, P, *in]``, S half of the restarts.

    What it finds goes to the scene's best points; the search may be over afterwards.
    """
    problems, settings = scene.problems, scene.settings
    centre = problems.lower + (problems.upper - problems.lower) / 2
    room = settings.batch_bytes // max(1, problems.count * centre[0].numel() * centre.element_size())
    count = min(settings.restarts // 2, room)
    seeds = project(centre, problems.lower, problems.upper)[problems.box].expand(count, *_shape(problems)).clone()
    pool = min(_MOST_RANDOM_POINTS, max(1, settings.restarts * settings.steps // 2))
    left = scene.pace.left()
    for part in scene.best.worst.argsort(stable=True).split(max(1, scene.most_points // pool)):
        if scene.must_stop(0, 0) or scene.pace.left() < (1 - _SHARE_OF_TIME) * left:
            break
        elite = _look_around(scene, part, pool)
        if problems.lower[0].numel() <= _MOST_INPUTS_TO_EVOLVE:
            elite = evolve(scene, part, elite, generator(scene, _WORD, 1, int(part[0])), _SHARE_OF_TIME)
        seeds[: elite.x.shape[0], part] = elite.best(count)
    return seeds


def _shape(problems: Problems) -> tuple[int, ...]:
    return (problems.count, *problems.lower.shape[1:])


def _look_around(scene: Scene, index: Tensor, pool: int) -> Elite:
    """The best of random and diversified points for each of the problems ``index``."""
    problems = scene.problems.select(index)
    boxes, local = problems.box.unique(return_inverse=True)
    lower, upper = scene.problems.lower[boxes], scene.problems.upper[boxes]
    random = generator(scene, _WORD, 0, int(index[0]))
    pool = max(1, min(pool, scene.pace.evaluations_in(_SHARE_OF_TIME / 2) // len(boxes)))
    size = (pool, *lower.shape)
    uniform = torch.rand(size, generator=random, dtype=lower.dtype, device=lower.device)
    points = [project(lower + uniform * (upper - lower), lower, upper)]
    outputs = [_outputs(scene, points[0])]
    diversified = points[0][: _DIVERSIFIED_PER_RESTART * scene.settings.restarts]
    for x, y in _diversify(scene, diversified, lower, upper, random):
        points.append(x)
        outputs.append(y)
    x, y = torch.cat(points), torch.cat(outputs)
    values = problems.values(y[:, local]) + scene.settings.tolerance
    worst = problems.worst(values)
    deepest, first = worst.min(0)
    scene.best.observe(index, x[first, local].unsqueeze(0), deepest.unsqueeze(0))
    count = min(_MOST_EVOLVED, _EVOLVED_PER_RESTART * scene.settings.restarts, len(x))
    return Elite.choose(x, local, values, worst, count)


def _diversify(
    scene: Scene, x: Tensor, lower: Tensor, upper: Tensor, random: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Points ``[N, G, *in]`` driven along random directions of the output space, and their outputs, after each step.

    Source: Tashiro, Song, Ermon, Diversity can be transferred: output diversification for white- and black-box
    attacks (2020).
    """
    seen: list[tuple[Tensor, Tensor]] = []
    shape = (*x.shape[:2], scene.clean.shape[-1])
    direction = 2 * torch.rand(shape, generator=random, dtype=x.dtype, device=x.device) - 1
    for step in range(min(_DIVERSIFIED_STEPS, scene.settings.steps) + 1):
        if scene.pace.no_time_for(x.shape[0] * x.shape[1]):
            break
        gradient, y = _along(scene, x, direction)
        if step > 0:  # the points before the first step are known
            seen.append((x, y))
        x = project(x + _DIVERSIFIED_STEP * (upper - lower) * gradient.sign(), lower, upper)
    return seen


def _along(scene: Scene, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of ``direction . y`` by x, and y; in parts that fit memory."""
    rows = max(1, scene.most_points // x.shape[1])
    gradients, outputs = [], []
    for part, towards in zip(x.split(rows), direction.split(rows), strict=True):
        with torch.enable_grad():
            point = part.detach().requires_grad_()
            y = scene.outputs(point)
            gradients.append(gradient_of((towards * y).sum(), point))
        outputs.append(y.detach())
    return torch.cat(gradients), torch.cat(outputs)


def _outputs(scene: Scene, x: Tensor) -> Tensor:
    """``[N, G, *in] -> [N, G, O]`` in parts that fit memory."""
    with torch.no_grad():
        return torch.cat([scene.outputs(part) for part in x.split(max(1, scene.most_points // x.shape[1]))])
