"""Branch and bound against an exact MILP on random small networks, the attack being off."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch

from auto_LiRPA.bounds.alpha import alpha_crown
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Box
from complete_verifier.bab.search import search
from complete_verifier.bab.settings import BabResult, BabSettings
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Clauses, Clock, Problem
from tests.milp import worst_violation
from tests.nets import dense_layers, mlp, residual

COUNT = int(os.environ.get("SOAK_MILP_NETS", "60"))
BORDERLINE = 1e-4  # verdicts nearer to the boundary than this are float32's to lose, not the search's


def decide(graph: Graph, box: Box, c: torch.Tensor, rhs: torch.Tensor, settings: BabSettings) -> BabResult:
    """Incomplete stage by alpha-CROWN, then branch and bound, on clauses ``c`` ``[K, R, n]``."""
    k, r, _ = c.shape
    clauses = Clauses(c, rhs, torch.zeros(k, dtype=torch.long), torch.zeros(k, r, dtype=torch.bool))
    context = DistributedContext.single()
    bounds = BoundSettings(alpha=AlphaSettings(iterations=5, lr_alpha=0.25))
    problem = Problem(graph, box, clauses, context, bounds, Clock(time.monotonic(), 60.0))
    found = alpha_crown(graph, box, c.reshape(1, k * r, -1), context, bounds)
    lower = found.lower.reshape(k, r)
    slopes = {j: s[0].unflatten(0, (k, r)) for j, s in found.slopes[0].items()}
    start = IncompleteResult(lower, clauses.proven(lower), found.intermediate, slopes)

    def confirm(x: np.ndarray) -> bool:
        y = evaluate(graph, torch.as_tensor(x).reshape(1, -1).to(c))[0]
        return bool(((c @ y <= rhs + 1e-5).all(1)).any())

    return search(problem, start, settings, on_candidate=confirm)


@pytest.mark.parametrize("seed", range(COUNT))
def test_verdict_equals_milp(seed: int) -> None:
    """Closed exactly when no counterexample exists; an open end comes with a confirmed counterexample."""
    gen = np.random.default_rng(seed)
    skip = seed % 3 == 2
    depth = int(gen.integers(1, 4))
    width = int(gen.integers(3, 9))
    sizes = [int(gen.integers(2, 5)), *([width] * depth), 3]
    layers = dense_layers(sizes, seed, torch.float32)
    graph = (residual if skip else mlp)(layers)
    center = gen.normal(size=sizes[0])
    radius = gen.uniform(0.2, 1.2, size=sizes[0])
    lower, upper = (center - radius).astype(np.float32), (center + radius).astype(np.float32)
    k, r = int(gen.integers(1, 3)), int(gen.integers(1, 3))
    c = gen.normal(size=(k, r, 3)).astype(np.float32)
    plain = [(layer.weight.double().numpy(), layer.bias.double().numpy()) for layer in layers]
    box64 = (lower.astype(np.float64), upper.astype(np.float64))
    worst = [worst_violation(plain, *box64, c[i].astype(np.float64), np.zeros(r), skip) for i in range(k)]
    # put the threshold near the true optimum, on one side or the other: there the search has to work
    shift = float(min(worst) + gen.choice([-1, 1]) * gen.uniform(0.01, 0.1))
    rhs = np.full((k, r), shift, dtype=np.float32)
    truth = [w - float(np.float32(shift)) for w in worst]
    if min(abs(t) for t in truth) < BORDERLINE:
        pytest.skip("too close to the boundary for float32")
    box = Box(torch.from_numpy(lower)[None], torch.from_numpy(upper)[None])
    settings = BabSettings(
        method="kfsb" if seed % 2 else "babsr", batch_size=8, iterations=8, lr_alpha=0.1, record_ledger=True
    )
    result = decide(graph, box, torch.from_numpy(c), torch.from_numpy(rhs), settings)
    assert result.closed == (min(truth) > 0), (result, truth)
    if not result.closed:
        assert result.stopped_by == "counterexample"
