"""Domains whose every neuron is fixed: the network is affine there, so an LP decides them exactly (SciPy HiGHS)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import NeuronList, Relaxations, Rows, backward, neuron_rows
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.parallel.store import LocalStore
from auto_LiRPA.parallel.whole import whole
from auto_LiRPA.values import Interval, LpBall
from complete_verifier.bab.ball_cuts import MOST_CUTS, BallCuts
from complete_verifier.bab.domains import Domains, own_columns
from complete_verifier.branching.layout import Layout, domain_boxes, domain_relaxations
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

# HiGHS works to 1e-7 feasibility; a leaf is closed only when it misses the clause by clearly more than that.
LP_MARGIN = 1e-6


@dataclass(frozen=True, slots=True)
class LeafResult:
    """``closed``: no input of the leaf satisfies the clause. Else ``candidate``: the input that comes nearest."""

    closed: bool
    candidate: np.ndarray | None


class LeafSolver:
    """Solves leaves in float64, whatever the search's dtype.

    Making one copies all weights, so ranks that share weights make theirs together; each then solves its own leaves.
    """

    def __init__(self, problem: Problem, root: IncompleteResult, layout: Layout) -> None:
        self.problem, self.layout = problem, layout
        store = LocalStore(problem.context.settings.block_mib)
        self.graph: Graph = problem.graph.mapped(
            lambda t: t.double() if t.is_floating_point() else t,
            lambda w: store.place(whole(w, torch.float64)),
        )
        boxes = {k: Interval(b.lower.double(), b.upper.double()) for k, b in root.intermediate.boxes.items()}
        relaxations = {
            n.id: n.op.relax(*(boxes[i] for i in n.inputs))  # type: ignore[attr-defined]
            for n in self.graph.nodes
            if n.id in root.intermediate.relaxations
        }
        self.root = type(root.intermediate)(boxes, relaxations, ())

    def solve(self, domain: Domains) -> LeafResult:
        """Decide one leaf (a batch of one domain)."""
        clause = domain.clause
        region_index = self.problem.clauses.region[clause]
        own = own_columns(domain)
        own = None if own is None else Interval(own.lower.double(), own.upper.double())
        boxes = domain_boxes(self.layout, self.root, region_index, domain.sign, own)
        relaxations = domain_relaxations(self.graph, self.root, boxes, self.layout)
        signs = self._sign_constraints(domain, relaxations)
        c = self.problem.clauses.c[clause].double()
        rows = Rows(self.graph.output, c.reshape(*c.shape[:2], *self.graph.output_shape))
        goal, offset = self._affine(rows, relaxations)
        rhs = self.problem.clauses.rhs[clause].double().flatten()
        real = torch.isfinite(rhs)
        goal, offset, rhs = goal[real], offset[real], rhs[real]
        finite = bool(torch.isfinite(goal).all() & torch.isfinite(offset).all())
        if not finite or not all(bool(np.isfinite(part).all()) for part in signs):
            return LeafResult(False, None)
        if len(rhs) == 0:  # a clause without rows holds everywhere
            return LeafResult(False, self.problem.region.center()[region_index][0].double().cpu().numpy())
        margin = LP_MARGIN * (1 + float(rhs.abs().max()))
        # HiGHS takes 1e20 for infinity, and its tolerances are absolute: rows are brought to the size of 1
        scale = max(1.0, float(goal.abs().max()), float((rhs - offset).abs().max()))
        goal, limit, margin = goal / scale, (rhs - offset) / scale, max(LP_MARGIN, margin / scale)
        signs = _scaled(*signs)
        # a ball starts as the box around it, and is cut out of that as far as the answer needs it
        box, ball = self.problem.region.interval(), self._ball(region_index)
        lower = box.lower[region_index].double().flatten().cpu().numpy()
        upper = box.upper[region_index].double().flatten().cpu().numpy()
        # least t (in units of ``scale``) with goal x + offset - rhs <= t on all rows, over the leaf's polytope
        upper_rows = np.concatenate(
            [
                np.hstack([goal.cpu().numpy(), -np.ones((len(goal), 1))]),
                np.hstack([signs[0], np.zeros((len(signs[0]), 1))]),
            ]
        )
        limits = np.concatenate([limit.cpu().numpy(), signs[1]])
        bounds = [*zip(lower, upper, strict=True), (None, None)]
        closed, x = _least(upper_rows, limits, bounds, margin, ball)
        return LeafResult(closed, None if x is None else x.reshape(self.graph.input_shape))

    def _ball(self, index: Tensor) -> BallCuts | None:
        region = self.problem.region.pick(index)
        if not isinstance(region, LpBall):
            return None
        center = region.x0.double().flatten().cpu().numpy()
        return BallCuts(center, float(region.eps.double().flatten()[0]), region.p)

    def _affine(self, rows: Rows, relaxations: Relaxations) -> tuple[Tensor, Tensor]:
        """``rows`` as exact affine functions of the input: ``[T, n]``, ``[T]``."""
        result = backward(self.graph, rows, relaxations)
        count = rows.coef.shape[1]
        if result.coef is None:
            n = self.graph.nodes[0].size
            return torch.zeros(count, n, dtype=torch.float64), result.bias[0].expand(count)
        return result.coef[0].flatten(1), result.bias[0].expand(count)

    def _sign_constraints(self, domain: Domains, relaxations: Relaxations) -> tuple[np.ndarray, np.ndarray]:
        """``A x <= b`` that says every split neuron has its sign."""
        parts: list[np.ndarray] = []
        limits: list[np.ndarray] = []
        for layer in self.layout.layers:
            sign = self.layout.of(domain.sign, layer)[0]
            index = layer.index[sign != 0]
            if len(index) == 0:
                continue
            rows = neuron_rows(self.graph, layer.source, NeuronList.of(index, torch.float64), both=False)
            coef, bias = self._affine(rows, relaxations)
            s = sign[sign != 0].double().unsqueeze(1)
            parts.append((-s * coef).cpu().numpy())
            limits.append((s.squeeze(1) * bias).cpu().numpy())
        if not parts:
            return np.zeros((0, self.graph.nodes[0].size)), np.zeros(0)
        return np.concatenate(parts), np.concatenate(limits)


def _scaled(rows: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same ``A x <= b``, rows of large numbers divided by their largest one."""
    size = np.maximum(np.abs(rows).max(1, initial=1.0), np.abs(limits))
    return rows / size[:, None], limits / size


def _least(
    rows: np.ndarray, limits: np.ndarray, bounds: list[tuple[float | None, float | None]], margin: float,
    ball: BallCuts | None,
) -> tuple[bool, np.ndarray | None]:  # fmt: skip
    """Whether the last variable is above ``margin`` wherever ``rows @ x <= limits`` (in the ball); else a point."""
    from scipy.optimize import linprog

    goal = np.eye(1, len(bounds), len(bounds) - 1).ravel()
    x: np.ndarray | None = None
    for _ in range(MOST_CUTS if ball is not None else 1):
        result = linprog(goal, A_ub=rows, b_ub=limits, bounds=bounds, method="highs")
        if result.status == 2:
            return True, None
        if result.status != 0:
            return False, None
        if result.x[-1] > margin:
            return True, None
        x = result.x[:-1]
        cut = None if ball is None else ball.cut(x)
        if cut is None:
            break
        rows = np.vstack([rows, np.append(cut[0], 0.0)])
        limits = np.append(limits, cut[1])
    return False, x if ball is None or x is None else ball.inside(x)
