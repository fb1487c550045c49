"""The hand-written gradient of alpha/beta-CROWN against autograd of the same bound in float64."""

from __future__ import annotations

import pytest
import torch

from auto_LiRPA.bounds.alpha import FINAL, _Joint
from auto_LiRPA.bounds.backward import SplitTerm, backward, concretize, spec_rows
from auto_LiRPA.bounds.final import spec_tiles
from auto_LiRPA.bounds.intermediate import NOTHING_GIVEN, crown_boxes
from auto_LiRPA.bounds.optimize import initial_slopes
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.bounds.sweep import sweep
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.base import Relaxation
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.values import Box, LpBall, Region
from tests.attention import attention
from tests.nets import dense_layers, mlp, residual

SETTINGS = BoundSettings(compare_with_ibp=False)


def _graph(kind: str, seed: int) -> Graph:
    if kind == "attention":
        return attention(seed, block_mib=1e-4)
    sizes = [4, 7, 7, 7, 3]
    return (mlp if kind == "mlp" else residual)(dense_layers(sizes, seed), block_mib=1e-4)


def _region(p: float, batch: int, seed: int) -> Region:
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 4, generator=gen, dtype=torch.float64)
    if p == float("inf"):
        return Box(x - 0.6, x + 0.6)
    return LpBall(x, torch.full((batch,), 0.7, dtype=torch.float64), p)


def _free(relaxation: Relaxation) -> torch.Tensor:
    """1 where a slope can move: where it is pinned to an exact line its gradient is never used."""
    spec = relaxation.alpha
    assert spec is not None
    return (torch.as_tensor(spec.lower) < torch.as_tensor(spec.upper)).double()


@pytest.mark.parametrize("p", [float("inf"), 2.0, 1.0])
@pytest.mark.parametrize("kind", ["mlp", "residual", "attention"])
@pytest.mark.parametrize("seed", range(4))
def test_slopes_and_multipliers_with_fixed_boxes(kind: str, p: float, seed: int) -> None:
    """d bound / d alpha and d bound / d beta of one tile equal autograd's."""
    graph, region = _graph(kind, seed), _region(p, 2, seed)
    base = crown_boxes(graph, region, DistributedContext.single(), SETTINGS)
    gen = torch.Generator().manual_seed(seed)
    c = torch.randn(2, 3, 3, generator=gen, dtype=torch.float64)
    rows = spec_rows(graph, c)
    slopes = initial_slopes(graph, graph.output, base.relaxations, 2, 3)
    slopes = {k: (0.1 + 0.8 * torch.rand(v.shape, generator=gen, dtype=v.dtype)) for k, v in slopes.items()}
    splits = {}
    for node_id in list(base.relaxations)[:2]:
        source = graph.nodes[node_id].inputs[0]
        spec = base.relaxations[node_id].alpha
        assert spec is not None
        # slopes of a product or a softmax are not numbered by the neurons of their first input
        index = spec.index if isinstance(graph.nodes[node_id].op, Relu) else torch.arange(3)
        shape = (2, len(index))
        sign = torch.randint(-1, 2, shape, generator=gen).double()
        point = torch.rand(shape, generator=gen, dtype=torch.float64) if seed % 2 else None
        splits[source] = SplitTerm(index, torch.rand(shape, generator=gen, dtype=torch.float64), sign, point)
    weight = torch.rand(2, 3, generator=gen, dtype=torch.float64)

    leaves = {k: v.clone().requires_grad_() for k, v in slopes.items()}
    betas = {k: t.beta.clone().requires_grad_() for k, t in splits.items()}
    terms = {k: SplitTerm(t.index, betas[k], t.sign, t.point) for k, t in splits.items()}
    with torch.enable_grad():
        lower = concretize(backward(graph, rows, base.relaxations, leaves, terms), region)
        (weight * lower).sum().backward()

    with torch.no_grad():
        result = backward(graph, rows, base.relaxations, slopes, splits, save=True)
        found = sweep(graph, rows.node, result, region, base.relaxations, weight, slopes, splits)
    for key, leaf in leaves.items():
        assert leaf.grad is not None
        mine = found.slopes[key] * _free(base.relaxations[key])
        torch.testing.assert_close(mine, leaf.grad, rtol=1e-9, atol=1e-11)
    for key, leaf in betas.items():
        assert leaf.grad is not None
        torch.testing.assert_close(found.betas[key], leaf.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["mlp", "residual", "attention"])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("tile_rows", ["auto", 3])
@pytest.mark.parametrize("keep_passes", [True, False])
def test_joint_gradient_through_intermediate_bounds(
    kind: str, share: bool, tile_rows: int | str, keep_passes: bool
) -> None:
    """The tile-by-tile adjoints of `keep` equal autograd through all start nodes' bounds."""
    seed = 3
    graph, region = _graph(kind, seed), _region(float("inf"), 2, seed)
    context = DistributedContext.single(settings=ParallelSettings(tile_rows=tile_rows))  # type: ignore[arg-type]
    with torch.no_grad():
        base = crown_boxes(graph, region, context, SETTINGS)
    assert len(base.starts) >= 2
    gen = torch.Generator().manual_seed(seed)
    c = torch.randn(1, 2, 3, generator=gen, dtype=torch.float64)
    spec = spec_tiles(graph, c, context, 2)
    settings = AlphaSettings(iterations=2, lr_alpha=0.0, share_alphas=share)
    joint = _Joint(graph, region, spec, 1, base, context, settings, NOTHING_GIVEN)
    joint.keep_passes = keep_passes
    for tile in joint.slopes.values():
        for key, value in tile.items():
            tile[key] = 0.1 + 0.8 * torch.rand(value.shape, generator=gen, dtype=value.dtype)
    weight = torch.rand(2, 2, generator=gen, dtype=torch.float64)

    plain = {key: dict(tile) for key, tile in joint.slopes.items()}
    for tile in joint.slopes.values():
        for value in tile.values():
            value.requires_grad_()
    with torch.enable_grad():
        lower = joint._final_bounds(joint._refresh())
        (weight * lower).sum().backward()
    expected = {
        (key, node): value.grad for key, tile in joint.slopes.items() for node, value in tile.items()
    }
    assert any(g is not None and g.abs().sum() > 0 for (key, _), g in expected.items() if key[0] != FINAL)

    joint.slopes = {key: {n: v.detach() for n, v in tile.items()} for key, tile in plain.items()}
    joint.passes.clear()
    with torch.no_grad():
        relaxations = joint._refresh()
        joint._final_bounds(relaxations)
        found = dict(joint._gradients(relaxations, weight))
    gradients = {(key, node): value for key, tile in found.items() for node, value in tile.items()}
    for name, grad in expected.items():
        mine = gradients.get(name)
        if grad is None:
            assert mine is None or float(mine.abs().sum()) == 0
            continue
        assert mine is not None, name
        torch.testing.assert_close(mine * _free(relaxations[name[1]]), grad, rtol=1e-8, atol=1e-11)
