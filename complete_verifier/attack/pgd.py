"""Projected gradient descent on all clauses and starts at once (interface 7.10).

Shape letters: R starts of a batch, P problems of it, K rows, O outputs, ``*in`` the input's per-sample shape.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.numerics import full_precision
from complete_verifier.attack.objective import Best, Candidate, guiding, hinge
from complete_verifier.attack.problems import Problems, graph_dtype, on_float32_grid
from complete_verifier.attack.settings import AttackSettings
from complete_verifier.spec.property import Property

logger = logging.getLogger(__name__)

_MOMENTUM = 0.9
# Values of a network are kept for the way back, and their gradients exist beside them.
_COPIES_OF_VALUES = 3
# Host synchronisations stall a GPU's queue: there the best candidates are looked at every so many steps only.
_STEPS_BETWEEN_CHECKS = 8
# ... or so many seconds, if steps are slow.
_SECONDS_BETWEEN_CHECKS = 0.2
# One gradient step costs about as much as three evaluations.
_EVALUATIONS_PER_STEP = 3
# A batch is cut so that one step takes no more than this share of the time left.
_STEP_SHARE_OF_TIME = 0.05
# After so many candidates that did not stand up to confirmation the attack gives up.
_MAX_REJECTED = 50

Deadline = Callable[[], float]
Accept = Callable[[Candidate], bool]


@dataclass(frozen=True, slots=True)
class AttackResult:
    """How an attack ended: the accepted candidate, or the best that was seen, and what it cost."""

    accepted: Candidate | None
    best: Candidate | None
    restarts: int  # starts that were begun, for each problem (the centre not counted)
    steps: int  # gradient steps, summed over the batches


def attack(
    graph: Graph,
    target: Property | Problems,
    settings: AttackSettings,
    device: torch.device | str,
    deadline: Deadline,
) -> Candidate | None:
    """A point that violates all rows of some clause by the graph's own arithmetic, or None.

    Its ``x`` is float32 and lies in the region's box, rounded inwards. It is no counterexample before
    `confirm` has said so.

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
) -> AttackResult:
    """`attack` with a say in what counts: a candidate that ``accept`` refuses is dropped and the search goes on."""
    dtype = graph_dtype(graph)
    if isinstance(target, Property):
        target = Problems.from_property(target, graph.input_shape, dtype, device)
    with full_precision():
        return _Search(graph, target, settings, deadline, accept).run()


class _Search:
    """One attack: the centres first, then random starts in batches that fit memory and time."""

    def __init__(
        self, graph: Graph, problems: Problems, settings: AttackSettings, deadline: Deadline, accept: Accept
    ) -> None:
        self.graph = graph
        self.problems = problems
        self.settings = settings
        self.deadline = deadline
        self.accept = accept
        self.best = Best(problems)
        self.accepted: Candidate | None = None
        self.rejected = 0
        self.restarts = 0
        self.steps = 0
        self.seconds_per_point = 0.0
        values = sum(node.size for node in graph.nodes) * problems.lower.element_size()
        self.max_points = max(1, settings.batch_bytes // (_COPIES_OF_VALUES * values))
        self.on_cpu = problems.lower.device.type == "cpu"

    def run(self) -> AttackResult:
        seen = self._try_centres()
        if seen and not self.finished():
            for index, starts in self._batches():
                if self.out_of_time() or self.finished():
                    break
                self.restarts = max(self.restarts, starts.stop)
                _Batch(self, index, starts).descend()
        self.look(final=True)
        best = self.best.candidate() if seen else None
        return AttackResult(self.accepted, best, self.restarts, self.steps)

    def _try_centres(self) -> bool:
        """The centre of every box, evaluated once for all its clauses. False if there was no time for it."""
        problems = self.problems
        centre = on_float32_grid((problems.lower + (problems.upper - problems.lower) / 2))
        centre = torch.minimum(torch.maximum(centre, problems.lower), problems.upper)
        outputs = []
        for part in centre.split(self.max_points):
            if self.out_of_time():
                return False
            outputs.append(self._timed(part))
        self.clean = torch.cat(outputs)
        worst = problems.worst(self.values(problems, self.clean[problems.box]))
        self.best.observe(slice(None), centre[problems.box].unsqueeze(0), worst.unsqueeze(0))
        self.look()
        return True

    def _timed(self, x: Tensor) -> Tensor:
        """Outputs at ``x``, and how long such an evaluation takes. The very first one of a process says nothing."""
        for _ in range(2):
            began = time.perf_counter()
            with torch.no_grad():
                y = evaluate(self.graph, x).flatten(1)
            _synchronise(x.device)
            seconds = time.perf_counter() - began
            if self.seconds_per_point or seconds > _STEP_SHARE_OF_TIME * self.deadline():
                break
            self.seconds_per_point = 0.0
        self.seconds_per_point = seconds / len(x)
        return y

    def values(self, problems: Problems, y: Tensor) -> Tensor:
        """Rows of the problems at outputs ``[..., P, O]``, with the tolerance: violated where <= 0."""
        return problems.values(y) + self.settings.tolerance

    def _batches(self) -> Iterator[tuple[Tensor, range]]:
        """Which problems are searched together from which starts: all of a start before the next ones.

        Problems whose centre is nearest to a violation come first. The cut follows from memory and settings alone
        unless a step would take too long.
        """
        order = self.best.worst.argsort(stable=True)
        start = 0
        while start < self.settings.restarts:
            points = self._points_in_time()
            width = min(self.problems.count, points)
            height = min(max(1, points // width), self.settings.batch_size, self.settings.restarts - start)
            for index in order.split(width):
                yield index, range(start, start + height)
            start += height

    def _points_in_time(self) -> int:
        """How many points one step may work on."""
        seconds = self.step_seconds(1)
        share = max(0.0, self.deadline()) * _STEP_SHARE_OF_TIME
        if seconds == 0 or share / seconds >= self.max_points:
            return self.max_points
        return max(1, int(share / seconds))

    def step_seconds(self, points: int) -> float:
        """How long a step on so many points takes, by what was measured last."""
        return _EVALUATIONS_PER_STEP * self.seconds_per_point * points

    def note_step(self, points: int, seconds: float) -> None:
        """A step took so long. On a GPU the clock shows launches only: there the centres' figure stays."""
        self.steps += 1
        if self.on_cpu:
            self.seconds_per_point = seconds / (_EVALUATIONS_PER_STEP * points)

    def out_of_time(self, points: int = 0) -> bool:
        """Whether a step on so many points would end too late."""
        return self.deadline() <= self.step_seconds(points)

    def finished(self) -> bool:
        """Whether there is nothing more to search for."""
        return self.accepted is not None or self.rejected >= _MAX_REJECTED

    def must_stop(self, step: int, points: int) -> bool:
        """Asked in every step: is a candidate there, or no time for another step?"""
        every = 1
        if not self.on_cpu:
            seconds = max(self.step_seconds(points), 1e-6)
            every = max(1, min(_STEPS_BETWEEN_CHECKS, int(_SECONDS_BETWEEN_CHECKS / seconds)))
        if step % every == 0:
            self.look()
        return self.finished() or self.out_of_time(points)

    def look(self, final: bool = False) -> None:
        """Offer the candidates that have been reached; at the first step that has one if stopping early."""
        if not (final or self.settings.early_stop):
            return
        while not self.finished() and self.best.reached():
            candidate = self.best.candidate(only_reached=True)
            if self.accept(candidate):
                self.accepted = candidate
                logger.debug("candidate after %d steps: worst row %.3g", self.steps, candidate.worst_row)
                return
            self.rejected += 1
            self.best.reject(candidate.problem)


class _Batch:
    """Starts ``starts`` of the problems ``index``, descended together."""

    def __init__(self, search: _Search, index: Tensor, starts: range) -> None:
        self.search = search
        self.settings = search.settings
        self.index = index
        self.problems = search.problems.select(index)
        self.lower = search.problems.lower[self.problems.box]
        self.upper = search.problems.upper[self.problems.box]
        self.clean = search.clean[self.problems.box]
        self.widest = (self.upper - self.lower).flatten(1).amax(1)
        self.alpha = self._per_problem(self._alpha())
        self.generators = [self._generator(start) for start in starts]
        self.points = len(starts) * len(index)

    def _generator(self, start: int) -> torch.Generator:
        """Each start draws from its own generator: its points don't depend on which starts share its batch."""
        group = 0 if len(self.index) == self.search.problems.count else int(self.index[0]) + 1
        words = (self.settings.seed, start, group)
        seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
        return torch.Generator(self.lower.device).manual_seed(seed)

    def _draw(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), ``[R, P, *shape]``."""
        size = (len(self.index), *shape)
        draws = (torch.rand(size, generator=g, dtype=self.lower.dtype, device=g.device) for g in self.generators)
        return torch.stack(list(draws))

    def _uniform(self) -> Tensor:
        """Points of the boxes, ``[R, P, *in]``."""
        return self._project(self.lower + self._draw(*self.lower.shape[1:]) * (self.upper - self.lower))

    def _alpha(self) -> Tensor:
        """Step size of each problem, ``[P]``."""
        if self.settings.alpha != "auto":
            return torch.full_like(self.widest, self.settings.alpha)
        # An eighth of the widest side; where steps are scaled by each side itself, an eighth of that.
        return torch.full_like(self.widest, 0.125) if self.settings.alpha_scale else self.widest / 8

    def _per_problem(self, values: Tensor) -> Tensor:
        """``[P] -> [P, 1, ...]``, to meet ``[R, P, *in]``."""
        return values.reshape(-1, *(1 for _ in self.lower.shape[1:]))

    def _project(self, x: Tensor) -> Tensor:
        """Into the box, onto float32 numbers. A float32 number between the box's float32 ends is inside."""
        return on_float32_grid(torch.minimum(torch.maximum(x, self.lower), self.upper))

    def _outputs(self, x: Tensor) -> Tensor:
        """``[R, P, *in] -> [R, P, O]``."""
        return evaluate(self.search.graph, x.flatten(0, 1)).flatten(1).unflatten(0, x.shape[:2])

    def descend(self) -> None:
        """All steps from random starts, until a candidate is accepted or time is up."""
        x = self._uniform()
        if self.settings.diversified:
            spread = self._diversify(x)
            if spread is None:
                return
            x = spread
        momentum = torch.zeros_like(x)
        for step in range(self.settings.steps):
            began = time.perf_counter()
            gradient = self._gradient(x, step)
            if self.search.must_stop(step, self.points):
                return
            x, momentum = self._step(x, momentum, gradient, step)
            self.search.note_step(self.points, time.perf_counter() - began)
        with torch.no_grad():
            self._observe(x, self.search.values(self.problems, self._outputs(x)))
        self.search.must_stop(0, self.points)

    def _observe(self, x: Tensor, values: Tensor) -> None:
        self.search.best.observe(self.index, x, self.problems.worst(values))

    def _gradient(self, x: Tensor, step: int) -> Tensor:
        """Of the ascended objective by x; the points and their rows are taken note of on the way."""
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            y = self._outputs(point)
            values = self.search.values(self.problems, y)
            gain = -hinge(values)
            if self.settings.gama:
                weight = self.settings.gama_lambda * self.settings.gama_decay**step
                gain = gain + weight * guiding(y, self.clean)
            gradient = _gradient_of(gain, point)
        self._observe(x, values.detach())
        return gradient

    def _step(self, x: Tensor, momentum: Tensor, gradient: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Sign ascent along Adam's update, or along the gradient itself with ``alpha_scale``.

        Only the sign of Adam's update is used, which is that of its first moment: the second one is never needed.
        """
        if self.settings.alpha_scale:
            moved = x + self.alpha * (self.upper - self.lower) * gradient.sign()
        else:
            momentum = momentum.mul_(_MOMENTUM).add_(gradient, alpha=1 - _MOMENTUM)
            rate = self.settings.lr_decay**step / (1 - _MOMENTUM ** (step + 1))
            moved = x + self.alpha * rate * momentum.sign()
        moved = self._project(moved)
        if self.settings.restart_when_stuck:
            stuck = (moved == x).flatten(2).all(2).reshape(*x.shape[:2], *(1 for _ in x.shape[2:]))
            moved = torch.where(stuck, self._uniform(), moved)
            momentum = momentum.masked_fill(stuck, 0.0)
        return moved, momentum

    def _diversify(self, x: Tensor) -> Tensor | None:
        """Starts driven along random directions of the output space, so that they part; None if time is up.

        Source: Tashiro, Song, Ermon, Diversity can be transferred: output diversification for white- and black-box
        attacks (2020).
        """
        direction = 2 * self._draw(self.clean.shape[-1]) - 1
        for step in range(self.settings.steps):
            if self.search.must_stop(step, self.points):
                return None
            with torch.enable_grad():
                point = x.detach().requires_grad_()
                y = self._outputs(point)
                gradient = _gradient_of((direction * y).sum(), point)
            self._observe(x, self.search.values(self.problems, y.detach()))
            x = self._project(x + self.alpha * gradient.sign())
            self.search.steps += 1
        return x


def _gradient_of(gain: Tensor, point: Tensor) -> Tensor:
    """d gain / d point, zero where it does not depend on it; nothing is accumulated on weights."""
    if not gain.requires_grad:
        return torch.zeros_like(point)
    (gradient,) = torch.autograd.grad(gain, point, allow_unused=True, materialize_grads=True)
    # A NaN (a network that overflows) would stay in Adam's moment for ever.
    return gradient.nan_to_num(nan=0.0)


def _synchronise(device: torch.device) -> None:
    """Wait for a GPU, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
