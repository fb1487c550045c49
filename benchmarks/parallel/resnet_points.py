"""Experiment 8's questions: around a mixture of two classes' patterns, where CROWN just fails.

The mixture decides how hard the proof is, the radius how many neurons are unstable; both are found by bounding, as the
configuration asks for it, and are written into the VNN-LIB file and told.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.numerics import full_precision
from auto_LiRPA.values import Box
from complete_verifier.bab.search import search
from complete_verifier.config import Config
from complete_verifier.driver.choices import bab_settings, bound_settings, incomplete_settings
from complete_verifier.driver.questions import FileReader
from complete_verifier.incomplete.regions import unstable_count
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.problem import Clock, Problem

logger = logging.getLogger(__name__)

Wanted = Literal["unsat", "unknown"]
_HALVINGS = 8  # of the interval in which CROWN begins to fail
_HALVINGS_OF_ATTACKS = 12  # of that in which an attack begins to succeed
_RADII = 4  # tried, each half of the one before


@dataclass(frozen=True, slots=True)
class Point:
    """A question and what is known of it.

    ``mix``: share of the second class's pattern; ``crown``, ``alpha``: the least margin that each proves; ``sampled``:
    the least margin that an attack by gradients found (above 0: no counterexample); ``undecided``: unstable neurons
    after CROWN.
    """

    label: int
    other: int
    mix: float
    eps: float
    crown: float
    alpha: float
    sampled: float
    undecided: int


class Finder:
    """Bounds of one network around mixtures of two images."""

    def __init__(
        self, net: nn.Module, images: Tensor, config: Config, folder: Path, stem: str, context: DistributedContext
    ) -> None:
        self._net, self._images, self._config, self._context = net.to(context.device), images, config, context
        self.onnx, self.vnnlib = folder / f"{stem}.onnx", folder / f"{stem}.vnnlib"
        self._problem: Problem | None = None
        self._label = -1

    def find(self, wanted: Wanted, eps: float, pairs: Sequence[tuple[int, int]], most: int) -> Point:
        """The first pair of classes and radius that give what is ``wanted`` with at most ``most`` unstable neurons.

        Raises:
            RuntimeError: no pair does; the training went wrong.
        """
        with torch.no_grad(), full_precision():
            for _ in range(_RADII):
                for label, other in pairs:
                    if self._crown(label, other, 0.25, eps)[1] > most:
                        break  # as many around any other image: a smaller radius
                    found = self._between(wanted, eps, label, other, most)
                    if found is not None:
                        return found
                eps /= 2
        raise RuntimeError(f"no image between two classes is {wanted} with at most {most} unstable neurons")

    def write(self, point: Point) -> None:
        """The property as VNN-LIB: the box, and one clause for each other class."""
        box = self._box(point.label, point.other, point.mix, point.eps)
        self.vnnlib.write_text(vnnlib(box, point.label, self._images.shape[0]), encoding="utf-8")

    def _between(self, wanted: Wanted, eps: float, label: int, other: int, most: int) -> Point | None:
        """A mixture of two classes; None if CROWN fails at the pattern itself, or too many neurons are unstable.

        Somewhere on the way to the other pattern, which the network calls by the other name, each method fails: CROWN
        first, then alpha-CROWN; last of all an attack begins to succeed.
        """
        low, high = 0.0, 1.0
        m_low, _ = self._crown(label, other, low, eps)
        m_high, count = self._crown(label, other, high, eps)
        logger.info("eps %.5f, %d to %d: CROWN's margins %.4f to %.4f", eps, label, other, m_low, m_high)
        if not m_low > 0 > m_high:
            return None
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            margin, found = self._crown(label, other, middle, eps)
            if margin > 0:
                low, m_low = middle, margin
            else:
                high, m_high, count = middle, margin, found
        logger.info("mix %.4f: CROWN %.4f, %d unstable", high, m_high, count)
        if count > most:
            return None
        if wanted == "unsat":
            mixes = self._provable(label, other, high, eps, m_high, (m_high - m_low) / (high - low))
        else:
            mixes = self._robust(label, other, high, eps)
        for mix in mixes:
            point, after = self._point(label, other, mix, eps)
            logger.info("%s", point)
            if point.crown > 0:
                continue
            if wanted == "unsat" and point.alpha > 0:
                return point
            if wanted == "unknown" and point.alpha < 0 < point.sampled and self._stays_open(point, after):
                return point
        return None

    def _provable(
        self, label: int, other: int, fails: float, eps: float, crown: float, slope: float
    ) -> Sequence[float]:
        """Mixtures that CROWN should fail at and alpha-CROWN prove, the farthest from both ends first.

        ``fails``: where CROWN just does, with margin ``crown``; ``slope``: of that margin there.
        """
        alpha, _ = self._bounded(label, other, fails, eps, "alpha-crown")
        logger.info("alpha-CROWN: %.4f there", alpha)
        return [fails - (share * (alpha - crown) + crown) / slope for share in (0.5, 0.25, 0.1)] + [fails]

    def _robust(self, label: int, other: int, fails: float, eps: float) -> Sequence[float]:
        """Mixtures at which an attack just finds no counterexample, the nearest to where it does first."""
        low, high = fails, 1.0
        if self._attacked(self._box(label, other, low, eps), label) <= 0:
            return ()
        for _ in range(_HALVINGS_OF_ATTACKS):
            middle = (low + high) / 2
            if self._attacked(self._box(label, other, middle, eps), label) > 0:
                low = middle
            else:
                high = middle
        logger.info("an attack succeeds from mix %.5f on", high)
        return [low - share * (low - fails) for share in (0.05, 0.15, 0.3, 0.5)]

    def _point(self, label: int, other: int, mix: float, eps: float) -> tuple[Point, IncompleteResult]:
        crown, undecided = self._crown(label, other, mix, eps)
        alpha, after = self._bounded(label, other, mix, eps, "alpha-crown")
        sampled = self._attacked(self._box(label, other, mix, eps), label)
        return Point(label, other, mix, eps, crown, alpha, sampled, undecided), after

    def _crown(self, label: int, other: int, mix: float, eps: float) -> tuple[float, int]:
        """CROWN's least margin, and how many neurons are unstable."""
        margin, found = self._bounded(label, other, mix, eps, "crown")
        return margin, unstable_count(self._asked().graph, found.intermediate)

    def _bounded(
        self, label: int, other: int, mix: float, eps: float, method: Literal["crown", "alpha-crown"]
    ) -> tuple[float, IncompleteResult]:
        problem = self._around(label, other, mix, eps)
        result = run_incomplete(problem, replace(incomplete_settings(self._config, 600.0), method=method))
        return float(problem.clauses.margin(result.lower).min()), result

    def _stays_open(self, point: Point, start: IncompleteResult) -> bool:
        problem = self._around(point.label, point.other, point.mix, point.eps)
        return not search(problem, start, bab_settings(self._config)).closed

    def _around(self, label: int, other: int, mix: float, eps: float) -> Problem:
        if self._problem is None or self._label != label:
            self._label = label
            self.write(Point(label, other, mix, eps, 0, 0, 0, 0))
            read = FileReader(self.onnx, self.vnnlib)
            bounds, clock = bound_settings(self._config), Clock(time.monotonic(), 1e6)
            self._problem = read(self._config, self._context, bounds, clock).problem
        return replace(self._asked(), region=self._box(label, other, mix, eps))

    def _asked(self) -> Problem:
        assert self._problem is not None
        return self._problem

    def _box(self, label: int, other: int, mix: float, eps: float) -> Box:
        center = torch.lerp(self._images[label], self._images[other], mix).unsqueeze(0).to(self._context.device)
        return Box((center - eps).clamp(0, 1), (center + eps).clamp(0, 1))

    def _attacked(self, box: Box, label: int, starts: int = 32, steps: int = 30) -> float:
        """Least margin over the starts of a descent by signs (Madry et al. 2018), the centre among them."""
        gen = torch.Generator(box.lower.device).manual_seed(0)
        share = torch.rand(starts, *box.lower.shape[1:], generator=gen, device=box.lower.device)
        share[0] = 0.5
        width = box.upper - box.lower
        best = math.inf
        for step in range(steps + 1):
            with torch.enable_grad():
                share.requires_grad_(True)
                y = self._net(box.lower + share * width)
                rest = y.index_fill(1, torch.tensor([label], device=y.device), -math.inf)
                margin = y[:, label] - rest.amax(1)
                (gradient,) = torch.autograd.grad(margin.sum(), share)
            best = min(best, float(margin.min()))
            share = (share.detach() - 0.3 * 0.9**step * gradient.sign()).clamp(0, 1)
        return best


def vnnlib(box: Box, label: int, classes: int) -> str:
    """The text of a property: a counterexample is an input of the box where another class reaches ``label``'s."""
    lower, upper = box.lower.flatten().tolist(), box.upper.flatten().tolist()
    lines = [f"(declare-const X_{i} Real)" for i in range(len(lower))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(classes)]
    for i, (a, b) in enumerate(zip(lower, upper, strict=True)):
        lines += [f"(assert (>= X_{i} {a:.9f}))", f"(assert (<= X_{i} {b:.9f}))"]
    others = "\n".join(f"  (and (>= Y_{j} Y_{label}))" for j in range(classes) if j != label)
    return "\n".join([*lines, f"(assert (or\n{others}\n))", ""])
