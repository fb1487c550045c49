"""Wrong answer 6: a residual branch of a reshape and three convolutions, with no ReLU between, was proved wrongly.

A peer gives the branch's end a box of no width (lower = upper) and builds its proof on it. The network is small enough
for an exact answer: it is ``W1 relu((I + C) relu(W0 x + b0)) + b1`` with C the matrix of the three convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.arithmetic import Add
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.shape import Reshape
from auto_LiRPA.values import Box
from complete_verifier.bab.settings import BabSettings
from tests.bab.problems import clauses, decide, incomplete, make_problem
from tests.milp import worst_violation
from tests.nets import Builder, dense_layers
from tests.regressions.bounding import INTERSECTED, METHODS, PLAIN, bound

SIDE = 3
WIDTH = SIDE * SIDE
SETTINGS = BabSettings(batch_size=32, iterations=6, lr_alpha=0.1, method="babsr", record_ledger=True)


@dataclass(frozen=True)
class Branched:
    """The network as a graph, as a function, and as plain matrices."""

    graph: Graph
    forward: Callable[[Tensor], Tensor]
    plain: list[tuple[np.ndarray, np.ndarray]]


def branched(seed: int, n_in: int = 3) -> Branched:
    """Random weights; the convolutions have 2, 2 and 1 channels, kernel 3, padding 1."""
    torch.manual_seed(seed)
    first, last = dense_layers([n_in, WIDTH], seed)[0], dense_layers([WIDTH, 3], seed + 1)[0]
    convs = [nn.Conv2d(i, o, 3, 1, 1).double().requires_grad_(False) for i, o in ((1, 2), (2, 2), (2, 1))]
    build = Builder((n_in,))
    at = build.relu(build.dense(first, 0))
    image = build.add(Reshape((WIDTH,), (1, SIDE, SIDE)), (at,), (1, SIDE, SIDE))
    end = image
    for conv in convs:
        in_shape = build.nodes[end].shape
        op = Conv(build.store.place(conv.weight), conv.bias, (1, 1), (1, 1), (1, 1), 1, in_shape)
        end = build.add(op, (end,), op.out_shape)
    total = build.relu(build.add(Add(), (image, end), (1, SIDE, SIDE)))
    build.dense(last, build.add(Reshape((1, SIDE, SIDE), (WIDTH,)), (total,), (WIDTH,)))

    def forward(x: Tensor) -> Tensor:
        z = torch.relu(x @ first.weight.T + first.bias).reshape(-1, 1, SIDE, SIDE)
        r = torch.relu(z + nn.Sequential(*convs)(z)).flatten(1)
        return r @ last.weight.T + last.bias

    chain = nn.Sequential(*convs)
    origin = chain(torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float64)).flatten()
    units = chain(torch.eye(WIDTH, dtype=torch.float64).reshape(-1, 1, SIDE, SIDE)).flatten(1) - origin
    middle = (np.eye(WIDTH) + units.T.numpy(), origin.numpy())
    plain = [(w.weight.numpy(), w.bias.numpy()) for w in (first, last)]
    return Branched(build.graph(), forward, [plain[0], middle, plain[1]])


def box(seed: int, fixed: int, n_in: int = 3) -> Box:
    """A random box; the first ``fixed`` inputs do not move (all of them: a point)."""
    gen = torch.Generator().manual_seed(seed)
    low = torch.randn(1, n_in, generator=gen, dtype=torch.float64)
    reach = 0.2 + 0.6 * torch.rand(1, n_in, generator=gen, dtype=torch.float64)
    reach[0, :fixed] = 0
    return Box(low, low + reach)


def exact_least(net: Branched, region: Box, c: np.ndarray) -> float:
    """The least value of ``c . y`` over the box."""
    low, high = region.lower[0].numpy(), region.upper[0].numpy()
    return worst_violation(net.plain, low, high, c[None], np.zeros(1))


@pytest.mark.parametrize("fixed", [0, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_exactly(seed: int, fixed: int) -> None:
    """No method passes the exact least value or a sampled one; a point is exact; no box before a ReLU is too small."""
    net, region = branched(seed), box(seed, fixed)
    c = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    exact = torch.tensor([exact_least(net, region, row.numpy()) for row in c[0]])
    share = torch.rand(2000, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = net.forward(region.lower + share * (region.upper - region.lower)) @ c[0].T
    assert bool((exact <= y.amin(0) + 1e-6).all()), "the exact solver and the samples are about other networks"
    for method in METHODS:
        for settings in (INTERSECTED, PLAIN):
            lower, upper = bound(net.graph, region, method, settings, c)
            assert bool((lower[0] <= exact + 1e-6).all()), f"{method}: {lower} above {exact}"
            assert bool((upper[0] >= y.amax(0) - 1e-9).all()), method
            if fixed == 3:
                assert torch.allclose(lower[0], y[0], atol=1e-9) and torch.allclose(upper[0], y[0], atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_box_of_the_sum_has_its_width(seed: int) -> None:
    """The box before the second ReLU holds every sampled value, on each neuron, and is not a point."""
    net, region = branched(seed), box(seed, 0)
    spec = clauses([(np.ones((1, 3)), np.array([-1e6]))], torch.float64)
    found = incomplete(make_problem(net.graph, region, spec)).intermediate
    (add,) = (node.id for node in net.graph.nodes if isinstance(node.op, Add))
    share = torch.rand(2000, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = [region.lower + share * (region.upper - region.lower)]
    for node in net.graph.nodes[1 : add + 1]:
        values.append(node.op.forward(*(values[i] for i in node.inputs)))
    seen = values[add]
    assert bool((found.boxes[add].lower[0] <= seen.amin(0) + 1e-9).all())
    assert bool((found.boxes[add].upper[0] >= seen.amax(0) - 1e-9).all())
    assert bool((found.boxes[add].upper - found.boxes[add].lower > 1e-3).any())


@pytest.mark.parametrize("fixed", [0, 1, 3])
@pytest.mark.parametrize("seed", range(2))
def test_the_search_gives_the_exact_answer(seed: int, fixed: int) -> None:
    """Thresholds 0.01 on either side of the exact least value: proved on one side only."""
    net, region = branched(seed), box(seed, fixed)
    c = np.random.default_rng(seed).normal(size=3)
    exact = exact_least(net, region, c)
    for margin in (-0.01, 0.01):  # of the exact value above the threshold
        spec = clauses([(c[None], np.array([exact - margin]))], torch.float64)
        problem = make_problem(net.graph, region, spec)
        if margin < 0:
            assert not bool(incomplete(problem).proven.any())
        elif bool(incomplete(problem).proven.all()):
            continue
        result = decide(problem, SETTINGS)
        assert result.closed == (margin > 0), result
