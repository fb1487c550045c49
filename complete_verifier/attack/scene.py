"""What all parts of one attack share: network, problems, settings, best points, clock, and the random generators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from complete_verifier.attack.objective import Best
from complete_verifier.attack.pace import Pace
from complete_verifier.attack.problems import Problems
from complete_verifier.attack.settings import AttackSettings
from complete_verifier.attack.team import Team


@dataclass(frozen=True, slots=True)
class Scene:
    """One attack. Letters as elsewhere: G boxes, P problems, O outputs, ``*in`` the input's per-sample shape."""

    graph: Graph
    problems: Problems
    settings: AttackSettings
    best: Best
    pace: Pace
    clean: Tensor  # [G, O] outputs at the centres of the boxes
    most_points: int  # that a gradient step may work on, by memory
    team: Team

    def outputs(self, x: Tensor) -> Tensor:
        """``[A, B, *in] -> [A, B, O]``."""
        return evaluate(self.graph, x.flatten(0, 1)).flatten(1).unflatten(0, x.shape[:2])

    def must_stop(self, step: int, points: int) -> bool:
        """Asked in every step: has a candidate been accepted, or is there no time for another such step?

        The same on all ranks of the team.
        """
        if self.pace.check_due(step, points):
            self.pace.look()
            if self.settings.early_stop:
                self.best.offer()
        return self.best.finished or self.pace.no_time_for(points)


def generator(scene: Scene, *words: int) -> torch.Generator:
    """A generator of its own for every sequence of words, given the seed."""
    seed = np.random.SeedSequence((scene.settings.seed, *words)).generate_state(1, np.uint64)[0]
    return torch.Generator(scene.problems.lower.device).manual_seed(int(seed))


def gradient_of(gain: Tensor, point: Tensor) -> Tensor:
    """d gain / d point, zero where it does not depend on it. Nothing is accumulated on weights."""
    if not gain.requires_grad:
        return torch.zeros_like(point)
    (gradient,) = torch.autograd.grad(gain, point, allow_unused=True, materialize_grads=True)
    # A NaN (a network that overflows) would stay in Adam's moment for ever.
    return gradient.nan_to_num(nan=0.0)
