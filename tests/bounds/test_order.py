"""What is never looser than what, through the engine's own functions, on networks with many undecided neurons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.alpha import alpha_crown
from auto_LiRPA.bounds.backward import backward, concretize, spec_rows
from auto_LiRPA.bounds.intermediate import crown_boxes
from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.optimize import initial_slopes
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings, IntermAlpha
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Box, LpBall, Region
from tests.api.networks import KINDS, Net

CONTEXT = DistributedContext.single()
SETTINGS = BoundSettings(alpha=AlphaSettings(iterations=6, lr_alpha=0.3))
MODES: tuple[IntermAlpha, ...] = ("keep", "fixed", "stream")
ROUNDING = 1e-9


def question(kind: str, seed: int, p: float = float("inf")) -> tuple[Net, Region, Tensor]:
    """A random network in float64, a region of two elements around random points, three rows for each."""
    net = KINDS[kind](seed)
    gen = torch.Generator().manual_seed(seed)
    x = torch.rand(2, *net.input_shape, generator=gen, dtype=torch.float64)
    eps = torch.tensor([0.1, 0.6], dtype=torch.float64)
    wide = eps.reshape(-1, *([1] * (x.ndim - 1)))
    region = Box(x - wide, x + wide) if p == float("inf") else LpBall(x, eps, p)
    return net, region, torch.randn(2, 3, net.n_out, generator=gen, dtype=torch.float64)


def lower(net: Net, region: Region, c: Tensor, method: Method, settings: BoundSettings = SETTINGS) -> Tensor:
    with torch.no_grad():
        found = compute(net.graph, region, Query(c=c, upper=False), method, CONTEXT, settings).lower
    assert found is not None
    return found.bound


@pytest.mark.parametrize("p", [float("inf"), 2.0])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_methods_in_order(kind: str, p: float, count: Callable[[int, int], int]) -> None:
    """IBP <= CROWN-IBP, IBP <= CROWN, CROWN <= alpha-CROWN in each of its modes: row by row."""
    gained = 0
    for seed in range(count(8, 200)):
        net, region, c = question(kind, seed, p)
        found = {m: lower(net, region, c, m) for m in (Method.IBP, Method.CROWN_IBP, Method.CROWN)}
        assert bool((found[Method.IBP] <= found[Method.CROWN_IBP] + ROUNDING).all()), seed
        assert bool((found[Method.IBP] <= found[Method.CROWN] + ROUNDING).all()), seed
        for mode in MODES:
            settings = replace(SETTINGS, alpha=replace(SETTINGS.alpha, mode=mode))
            alpha = lower(net, region, c, Method.ALPHA_CROWN, settings)
            assert bool((found[Method.CROWN] <= alpha + ROUNDING).all()), f"{seed} {mode}"
            gained += int((alpha > found[Method.CROWN] + 1e-3).sum())
    assert gained > 10, "alpha-CROWN hardly gains anything here"


def test_intervals_over_a_ball() -> None:
    """IBP <= CROWN over an L2 ball as well."""
    for kind in sorted(KINDS):
        for seed in range(20):
            net, region, c = question(kind, seed, 2.0)
            ibp, crown = (lower(net, region, c, method) for method in (Method.IBP, Method.CROWN))
            assert bool((ibp <= crown + ROUNDING).all()), f"{kind} {seed}"


@pytest.mark.parametrize("intersect", [True, False])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_alpha_without_steps_is_crown(kind: str, intersect: bool) -> None:
    """One evaluation is CROWN itself, in every mode: so more of them can only gain."""
    for seed in range(6):
        net, region, c = question(kind, seed)
        settings = replace(SETTINGS, compare_with_ibp=intersect)
        crown = lower(net, region, c, Method.CROWN, settings)
        for mode in MODES:
            once = replace(settings, alpha=AlphaSettings(iterations=1, mode=mode))
            alpha = lower(net, region, c, Method.ALPHA_CROWN, once)
            torch.testing.assert_close(alpha, crown, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_more_iterations_are_no_looser(kind: str) -> None:
    """Each row keeps its best bound (fixed boxes: the same start and the same steps)."""
    for seed in range(4):
        net, region, c = question(kind, seed)
        last = lower(net, region, c, Method.CROWN)
        for iterations in (2, 4, 8):
            settings = replace(SETTINGS, alpha=AlphaSettings(iterations=iterations, mode="fixed", lr_alpha=0.3))
            now = lower(net, region, c, Method.ALPHA_CROWN, settings)
            assert bool((now >= last - ROUNDING).all())
            last = now


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_streamed_boxes_lie_within_crowns(kind: str) -> None:
    """`stream`: boxes are no looser than CROWN's over the same boxes below, and many are tighter.

    The first layer that is bounded backward has the very same boxes below it, so there it is so row by row.
    """
    gained = 0
    for seed in range(8):
        net, region, c = question(kind, seed)
        with torch.no_grad():
            crown = crown_boxes(net.graph, region, CONTEXT, SETTINGS)
            settings = replace(SETTINGS, alpha=replace(SETTINGS.alpha, mode="stream"))
            stream = alpha_crown(net.graph, region, c, CONTEXT, settings).intermediate
        if not crown.starts:
            continue
        first = crown.starts[0].node
        ours, theirs = stream.boxes[first], crown.boxes[first]
        assert bool((ours.lower >= theirs.lower - ROUNDING).all() & (ours.upper <= theirs.upper + ROUNDING).all())
        for node, box in crown.boxes.items():
            gained += int((stream.boxes[node].lower > box.lower + 1e-6).sum())
    if kind != "cnn":  # the convolutional ones have too few layers to gain in
        assert gained > 10


@pytest.mark.parametrize("p", [float("inf"), 1.0])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_slopes_anywhere_in_their_range_are_sound(kind: str, p: float, count: Callable[[int, int], int]) -> None:
    """Random slopes, also outside their range (they are clamped): no row passes what samples reach."""
    for seed in range(count(6, 100)):
        net, region, c = question(kind, seed, p)
        gen = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            base = crown_boxes(net.graph, region, CONTEXT, SETTINGS)
            slopes = initial_slopes(net.graph, net.graph.output, base.relaxations, 2, 3)
            wild = {k: torch.randn(v.shape, generator=gen, dtype=v.dtype) * 2 for k, v in slopes.items()}
            tame = {k: torch.rand(v.shape, generator=gen, dtype=v.dtype) for k, v in slopes.items()}
            reached = least(net, region, c, gen)
            for chosen in (wild, tame):
                found = backward(net.graph, spec_rows(net.graph, c), base.relaxations, chosen)
                assert bool((concretize(found, region) <= reached + ROUNDING).all()), seed


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_optimised_bounds_and_boxes_are_sound(kind: str, mode: IntermAlpha, count: Callable[[int, int], int]) -> None:
    """With steps so large that slopes jump from end to end: rows, and boxes of all layers, hold every sample."""
    for seed in range(count(5, 100)):
        net, region, c = question(kind, seed)
        gen = torch.Generator().manual_seed(seed)
        settings = replace(SETTINGS, alpha=AlphaSettings(iterations=8, lr_alpha=2.0, mode=mode))
        with torch.no_grad():
            found = alpha_crown(net.graph, region, c, CONTEXT, settings)
            assert bool((found.lower <= least(net, region, c, gen) + ROUNDING).all()), seed
            for element in range(2):
                values = [samples(region, gen)[:, element]]
                for node in net.graph.nodes[1:]:
                    values.append(node.op.forward(*(values[i] for i in node.inputs)))
                for node_id, box in found.intermediate.boxes.items():
                    low, high = values[node_id].amin(0), values[node_id].amax(0)
                    assert bool((box.lower[element] <= low + ROUNDING).all()), f"{seed} node {node_id}"
                    assert bool((box.upper[element] >= high - ROUNDING).all()), f"{seed} node {node_id}"


def samples(region: Region, gen: torch.Generator) -> Tensor:
    """``[300, B, *input]``, half of them corners (of a ball: on its boundary)."""
    center = region.center()
    direction = torch.randn(300, *center.shape, generator=gen, dtype=torch.float64)
    if isinstance(region, Box):
        share = torch.rand(direction.shape, generator=gen, dtype=torch.float64)
        share[:150] = share[:150].round()
        return region.lower + share * (region.upper - region.lower)
    assert isinstance(region, LpBall)
    length = torch.linalg.vector_norm(direction.flatten(2), ord=region.p, dim=2)
    return center + direction * (region.eps / length).reshape(*length.shape, *([1] * (center.ndim - 1)))


def least(net: Net, region: Region, c: Tensor, gen: torch.Generator) -> Tensor:
    """Least value ``[B, S]`` of the rows over samples."""
    x = samples(region, gen)
    y = evaluate(net.graph, x.flatten(0, 1)).reshape(*x.shape[:2], -1)
    return torch.einsum("bso,nbo->nbs", c, y).amin(0)
