"""Projected gradient descent of one batch of starts, all problems at once (interface 7.10).

Shape letters: R starts of the batch, P problems of it, K rows, O outputs, ``*in`` the input's per-sample shape.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from complete_verifier.attack.objective import guiding, hinge_sum
from complete_verifier.attack.problems import project
from complete_verifier.attack.scene import Scene, generator, gradient_of

_MOMENTUM = 0.9


class Descent:
    """Starts ``starts`` of the problems ``index`` ``[P]``, searched together.

    The rank's k-th start is ``seeds[k]`` (``[S, all problems, *in]``) as long as there are seeds, else a random point.
    """

    def __init__(self, scene: Scene, index: Tensor, starts: range, seeds: Tensor) -> None:
        self.steps = 0  # taken so far
        self._scene = scene
        self._settings = scene.settings
        self._index = index
        self._problems = scene.problems.select(index)
        self._lower = scene.problems.lower[self._problems.box]
        self._upper = scene.problems.upper[self._problems.box]
        self._clean = scene.clean[self._problems.box]
        self._alpha = self._step_sizes()
        group = 0 if len(index) == scene.problems.count else int(index[0]) + 1
        # Each start draws from its own generator: its points don't depend on which starts share its batch.
        self._generators = [generator(scene, start, group) for start in starts]
        before = starts.start // scene.team.count
        self._seeds = seeds[before : before + len(starts)][:, index]
        self._points = len(starts) * len(index)

    def run(self) -> None:
        """All steps, until a candidate is accepted or time is up. What is found goes to the scene's best points."""
        start = self._uniform()
        start[: len(self._seeds)] = self._seeds
        x = self._diversified(start) if self._settings.diversified else start
        if x is not None:
            self._descend(x)

    def _descend(self, x: Tensor) -> None:
        momentum = torch.zeros_like(x)
        for step in range(self._settings.steps):
            began = time.perf_counter()
            gradient = self._gradient(x, step)
            if self._must_stop(step):
                return
            x, momentum = self._step(x, momentum, gradient, step)
            self._count_step(began)
        with torch.no_grad():
            self._observe(x, self._values(self._scene.outputs(x)))

    def _must_stop(self, step: int) -> bool:
        return self._scene.must_stop(step, self._points)

    def _count_step(self, began: float) -> None:
        self.steps += 1
        self._scene.pace.note_step(self._points, began)

    def _values(self, y: Tensor) -> Tensor:
        """``[R, P, O] -> [R, P, K]``: a row is violated, by the tolerance at least, where this is <= 0."""
        return self._problems.values(y) + self._settings.tolerance

    def _observe(self, x: Tensor, values: Tensor) -> None:
        self._scene.best.observe(self._index, x, self._problems.worst(values))

    def _gradient(self, x: Tensor, step: int) -> Tensor:
        """Of the ascended objective by x; the points and their rows are taken note of on the way."""
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            y = self._scene.outputs(point)
            values = self._values(y)
            gain = -hinge_sum(values).sum()
            if self._settings.gama:
                gain = gain + self._settings.gama_lambda * self._settings.gama_decay**step * guiding(y, self._clean)
            gradient = gradient_of(gain, point)
        self._observe(x, values.detach())
        return gradient

    def _step(self, x: Tensor, momentum: Tensor, gradient: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Sign ascent along Adam's update, or along the gradient itself with ``alpha_scale``.

        Only the sign of Adam's update is used, which is that of its first moment: the second one is never needed.
        """
        if self._settings.alpha_scale:
            moved = x + self._alpha * (self._upper - self._lower) * gradient.sign()
        else:
            momentum = momentum.mul_(_MOMENTUM).add_(gradient, alpha=1 - _MOMENTUM)
            rate = self._settings.lr_decay**step / (1 - _MOMENTUM ** (step + 1))
            moved = x + self._alpha * rate * momentum.sign()
        moved = project(moved, self._lower, self._upper)
        if self._settings.restart_when_stuck:
            stuck = (moved == x).flatten(2).all(2).reshape(*x.shape[:2], *(1 for _ in x.shape[2:]))
            moved = torch.where(stuck, self._uniform(), moved)
            momentum = momentum.masked_fill(stuck, 0.0)
        return moved, momentum

    def _diversified(self, x: Tensor) -> Tensor | None:
        """Starts driven along random directions of the output space, so that they part; None if the search must stop.

        Source: Tashiro, Song, Ermon, Diversity can be transferred: output diversification for white- and black-box
        attacks (2020).
        """
        direction = 2 * self._draw(self._clean.shape[1:]) - 1
        for step in range(self._settings.steps):
            began = time.perf_counter()
            with torch.enable_grad():
                point = x.detach().requires_grad_()
                y = self._scene.outputs(point)
                gradient = gradient_of((direction * y).sum(), point)
            self._observe(x, self._values(y.detach()))
            if self._must_stop(step):
                return None
            x = project(x + self._alpha * gradient.sign(), self._lower, self._upper)
            self._count_step(began)
        return x

    def _uniform(self) -> Tensor:
        """Points of the boxes, ``[R, P, *in]``."""
        x = self._lower + self._draw(self._lower.shape[1:]) * (self._upper - self._lower)
        return project(x, self._lower, self._upper)

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform in [0, 1), ``[R, P, *shape]``."""
        size, dtype = (len(self._index), *shape), self._lower.dtype
        return torch.stack([torch.rand(size, generator=g, dtype=dtype, device=g.device) for g in self._generators])

    def _step_sizes(self) -> Tensor:
        """``[P, 1, ...]``. Auto: a quarter of the largest half-width; of each one if steps are scaled by the widths."""
        widest = (self._upper - self._lower).flatten(1).amax(1)
        if self._settings.alpha != "auto":
            sizes = torch.full_like(widest, self._settings.alpha)
        else:
            sizes = torch.full_like(widest, 1 / 8) if self._settings.alpha_scale else widest / 8
        return sizes.reshape(-1, *(1 for _ in self._lower.shape[1:]))

