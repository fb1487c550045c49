"""What is never looser than what, and what must not change a bound: tiles, batches, the way of asking."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from auto_LiRPA.graph.module import load_onnx
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.utils import get_spec_matrix
from tests.api.networks import KINDS, mlp
from tests.support import shared_dir

METHODS = ("IBP", "CROWN-IBP", "CROWN", "forward", "forward+backward", "CROWN-Optimized")
# looser <= tighter, with the default options
ORDER = (("IBP", "CROWN-IBP"), ("IBP", "CROWN"), ("CROWN", "CROWN-Optimized"), ("IBP", "forward+backward"))


def _ball(x: Tensor, eps: float, p: float) -> BoundedTensor:
    return BoundedTensor(x, PerturbationLpNorm(norm=p, eps=eps))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_order_of_the_methods(kind: str, count: Callable[[int, int], int]) -> None:
    """IBP <= CROWN-IBP, IBP <= CROWN <= alpha-CROWN: every row, both sides, with C and without."""
    for seed in range(count(6, 300)):
        net = KINDS[kind](seed)
        x = torch.rand(2, *net.input_shape, dtype=torch.float64)
        rows = torch.randn(2, 3, net.n_out, dtype=torch.float64)
        bounded = BoundedModule(net, x, bound_opts={"optimize_bound_args": {"iteration": 5}})
        for p in (math.inf, 2.0):
            for c in (None, rows):
                given = _ball(x, (0.05, 0.3, 1.0)[seed % 3], p)
                found = {m: bounded.compute_bounds(x=(given,), C=c, method=m) for m in METHODS}
                for loose, tight in ORDER:
                    _inside(found[tight], found[loose], f"{kind} {seed} p={p}: {loose} <= {tight}")


def _inside(tight: tuple[Tensor, Tensor], loose: tuple[Tensor, Tensor], what: str) -> None:
    room = 1e-10 * (1 + loose[0].abs() + loose[1].abs())
    assert bool((tight[0] >= loose[0] - room).all() & (tight[1] <= loose[1] + room).all()), what


def test_crown_loses_to_intervals_without_the_intersection() -> None:
    """On this network at eps 0.05 plain CROWN is looser than IBP on all outputs; our default never is."""
    net = load_onnx(shared_dir("benchmarks", "mnist_fc", "onnx", "mnist-net_256x2.onnx"))
    x = torch.zeros(1, 784, 1)
    given = _ball(x, 0.05, math.inf)
    plain = BoundedModule(net, x, bound_opts={"compare_crown_with_ibp": False})
    ibp, crown = (plain.compute_bounds(x=(given,), method=m)[0] for m in ("IBP", "CROWN"))
    ours, _ = BoundedModule(net, x).compute_bounds(x=(given,), method="CROWN")
    assert bool((ours >= torch.maximum(ibp, crown) - 1e-4 * ibp.abs()).all())
    assert bool((ours > crown).any())


def test_tile_rows_change_nothing() -> None:
    """128 and 2048 rows a tile agree to 1e-6; a tile of 3 rows, ragged at the end, agrees too."""
    net = load_onnx(shared_dir("benchmarks", "mnist_fc", "onnx", "mnist-net_256x4.onnx"))
    x = torch.rand(1, 784, 1, generator=torch.Generator().manual_seed(1))
    given = _ball(x, 0.02, math.inf)

    def bounds(rows: int) -> tuple[Tensor, Tensor]:
        return BoundedModule(net, x, parallel=ParallelSettings(tile_rows=rows)).compute_bounds(
            x=(given,), method="CROWN"
        )

    for few, many in ((128, 2048), (3, 7)):
        for a, b in zip(bounds(few), bounds(many), strict=True):
            assert bool(((a - b).abs() <= 1e-6 * (1 + b.abs())).all())


def test_crown_batch_size_caps_the_tile() -> None:
    """The option makes more tiles, of at most so many rows, and leaves the bounds alone."""
    net = mlp(4)
    x = torch.rand(1, *net.input_shape, dtype=torch.float64)
    results, tiles = [], []
    for size in (math.inf, 2):
        bounded = BoundedModule(net, x, bound_opts={"crown_batch_size": size})
        context = bounded._context(x.device)
        assert context.settings.tile_rows == ("auto" if size == math.inf else 2)
        results.append(bounded.compute_bounds(x=(_ball(x, 0.5, math.inf),), method="CROWN")[0])
        tiles.append(context.settings.tile_rows)
    assert torch.allclose(results[0], results[1], rtol=1e-12)


@pytest.mark.parametrize("method", METHODS[:-1])
def test_a_batch_is_its_samples(method: str) -> None:
    """Three samples with their own radii and rows give what three calls give."""
    for kind in KINDS:
        net = KINDS[kind](7)
        x = torch.rand(3, *net.input_shape, dtype=torch.float64)
        eps = torch.tensor([0.05, 0.2, 0.6], dtype=torch.float64)
        rows = torch.randn(3, 2, net.n_out, dtype=torch.float64)
        for p in (math.inf, 2.0):
            bounded = BoundedModule(net, x, bound_opts={"sparse_intermediate_bounds": False})
            wide = eps.reshape(3, *([1] * (x.ndim - 1)))
            together = bounded.compute_bounds(x=(BoundedTensor(x, PerturbationLpNorm(wide, p)),), C=rows, method=method)
            for i in range(3):
                one = BoundedTensor(x[i : i + 1], PerturbationLpNorm(float(eps[i]), p))
                alone = bounded.compute_bounds(x=(one,), C=rows[i : i + 1], method=method)
                for a, b in zip(together, alone, strict=True):
                    assert torch.allclose(a[i : i + 1], b, rtol=1e-9, atol=1e-9), f"{kind} {p}"


@pytest.mark.parametrize("method", METHODS)
def test_identity_rows_are_the_outputs(method: str) -> None:
    """C = identity is no looser than no C, one side alone is the same as both, x=None is the last x."""
    net = KINDS["cnn"](3)
    x = torch.rand(2, *net.input_shape, dtype=torch.float64)
    bounded = BoundedModule(net, x)
    given = _ball(x, 0.1, math.inf)
    lower, upper = bounded.compute_bounds(x=(given,), method=method)
    eye = torch.eye(net.n_out, dtype=torch.float64).unsqueeze(0)
    with_rows = bounded.compute_bounds(C=eye, method=method)
    _inside(with_rows, (lower, upper), method)
    only_lower, nothing = bounded.compute_bounds(C=eye, method=method, bound_upper=False)
    assert nothing is None and torch.allclose(only_lower, with_rows[0], rtol=1e-12)
    nothing, only_upper = bounded.compute_bounds(C=eye, method=method, bound_lower=False)
    assert nothing is None and torch.allclose(only_upper, with_rows[1], rtol=1e-12)


def test_margins_beat_differences_of_bounds() -> None:
    """Rows of `get_spec_matrix` keep what outputs have in common."""
    net = next(net for net in map(mlp, range(20)) if net.n_out >= 3)
    x = torch.rand(2, *net.input_shape, dtype=torch.float64)
    bounded, given = BoundedModule(net, x), _ball(x, 0.2, math.inf)
    label = torch.zeros(2, dtype=torch.long)
    rows = get_spec_matrix(x, label, net.n_out)
    for method in METHODS:
        lower, upper = bounded.compute_bounds(x=(given,), method=method)
        margin, _ = bounded.compute_bounds(C=rows, method=method)
        assert bool((margin >= lower[:, :1] - upper[:, 1:] - 1e-9).all()), method
