"""Soundness: no real output of a random network lies outside the bounds, for every method, norm and element type."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from tests.api.attacks import Around
from tests.api.networks import KINDS, Net, Residual, Scale

METHODS = ("IBP", "CROWN-IBP", "CROWN", "forward", "forward+backward", "CROWN-Optimized")
NORMS = ("inf", "box", "2", "1", "3")
# Bounds are computed by rounding arithmetic: relative room for it, far below any real fault.
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-11}


def _region(
    net: Net, norm: str, batch: int, size: float, seed: int, dtype: torch.dtype
) -> tuple[Around, PerturbationLpNorm]:
    gen = torch.Generator().manual_seed(seed)
    x = (torch.rand(batch, *net.input_shape, generator=gen, dtype=torch.float64) * 2 - 0.7).to(dtype)
    eps = (size * (0.2 + torch.rand(batch, generator=gen, dtype=torch.float64))).to(dtype)
    if norm == "box":
        low = x - size * torch.rand(x.shape, generator=gen, dtype=torch.float64).to(dtype)
        high = x + size * torch.rand(x.shape, generator=gen, dtype=torch.float64).to(dtype)
        high = torch.where(torch.rand(x.shape, generator=gen) < 0.2, low, high)  # some inputs do not move
        x = torch.maximum(low, torch.minimum(x, high))
        return Around(x, eps, math.inf, low, high), PerturbationLpNorm(norm=math.inf, x_L=low, x_U=high)
    around = Around.ball(x, eps, float(norm))
    wide = eps.reshape(-1, *([1] * (x.ndim - 1)))
    return around, PerturbationLpNorm(norm=float(norm), eps=wide)


def _rows(batch: int, n_out: int, seed: int, dtype: torch.dtype) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, n_out, generator=gen, dtype=torch.float64).to(dtype)


@pytest.mark.usefixtures("count")  # has a long form: `make soak` raises the number of examples
@pytest.mark.parametrize("kind", sorted(KINDS))
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(NORMS),
    size=st.sampled_from([0.02, 0.3, 1.5]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    intersect=st.booleans(),
)
def test_no_output_lies_outside(
    kind: str, seed: int, norm: str, size: float, dtype: torch.dtype, intersect: bool
) -> None:
    """lb <= C f(x) <= ub for sampled x and for those that a gradient search finds, with and without C."""
    net = KINDS[kind](seed).to(dtype)
    batch = 1 + seed % 3
    around, ptb = _region(net, norm, batch, size, seed, dtype)
    identity = torch.eye(net.n_out, dtype=dtype).expand(batch, -1, -1)
    rows = torch.cat([_rows(batch, net.n_out, seed, dtype), identity], dim=1)
    low, high = _real_range(net, around, rows, seed)
    opts = {"optimize_bound_args": {"iteration": 4}, "compare_crown_with_ibp": intersect}
    bounded = BoundedModule(net, around.x, bound_opts=opts)
    for method in METHODS:
        x = BoundedTensor(around.x, ptb)
        _contained(bounded.compute_bounds(x=(x,), C=rows, method=method), low, high, f"{method} with C")
        plain = bounded.compute_bounds(x=(x,), method=method)
        _contained(plain, low[:, -net.n_out :], high[:, -net.n_out :], method)


def _real_range(net: Callable[[Tensor], Tensor], around: Around, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Least and greatest value ``[B, S]`` of the rows that sampling and searching met."""
    gen = torch.Generator().manual_seed(seed)
    points = around.samples(200, gen)
    with torch.no_grad():
        out = net(points.flatten(0, 1)).reshape(len(points), around.x.shape[0], -1)
    values = torch.einsum("bsn,kbn->kbs", rows, out)
    both = torch.cat([rows, -rows], dim=1)
    found = torch.minimum(around.search(net, both, around.x), around.search(net, both, points[0])).T
    low, high = found.chunk(2, dim=1)
    return torch.minimum(values.amin(0), low), torch.maximum(values.amax(0), -high)


def _contained(bounds: tuple[Tensor, Tensor], low: Tensor, high: Tensor, what: str) -> None:
    lower, upper = (side.flatten(1) for side in bounds)
    room = ROUNDING[low.dtype] * (1 + torch.maximum(low.abs(), high.abs()))
    assert not bool(torch.isnan(lower).any() | torch.isnan(upper).any()), f"{what}: NaN"
    assert bool((lower <= low + room).all()), f"{what}: lower bound above a real output by {(lower - low).max():.3g}"
    assert bool((upper >= high - room).all()), f"{what}: upper bound below a real output by {(high - upper).max():.3g}"


def test_point_regions_are_exact() -> None:
    """A region of one point: every method gives the output itself."""
    for kind, make in KINDS.items():
        net = make(5)
        x = torch.rand(2, *net.input_shape, dtype=torch.float64)
        y = net(x).detach()
        for norm in (math.inf, 2.0):
            bounded = BoundedModule(net, x)
            for method in METHODS:
                point = BoundedTensor(x, PerturbationLpNorm(0.0, norm))
                lower, upper = bounded.compute_bounds(x=(point,), method=method)
                assert torch.allclose(lower, y, atol=1e-9) and torch.allclose(upper, y, atol=1e-9), (kind, norm, method)


def test_narrower_regions_give_no_looser_intervals() -> None:
    """IBP is monotone: half the radius lies within the whole one's bounds."""
    for seed in range(10):
        net = KINDS["cnn"](seed)
        bounded = BoundedModule(net, torch.zeros(1, *net.input_shape, dtype=torch.float64))
        x = torch.rand(1, *net.input_shape, dtype=torch.float64)
        wide, narrow = (
            bounded.compute_bounds(x=(BoundedTensor(x, PerturbationLpNorm(eps)),), method="IBP") for eps in (0.2, 0.1)
        )
        assert bool((wide[0] <= narrow[0] + 1e-12).all() & (narrow[1] <= wide[1] + 1e-12).all())


def test_a_linear_chain_of_convolutions_in_a_residual_branch() -> None:
    """Reshape, then a branch of three convolutions without a ReLU: upstream's plain CROWN gave a false proof here."""
    for seed in range(4):
        torch.manual_seed(seed)
        branch = Residual(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 3, padding=1))
        front = [nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()]
        net = Net((12,), [*front, branch, nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)]).double()
        x = torch.rand(1, 12, dtype=torch.float64)
        around = Around.ball(x, torch.tensor([0.3], dtype=torch.float64), math.inf)
        rows = torch.randn(1, 3, 2, dtype=torch.float64)
        low, high = _real_range(net, around, rows, seed)
        for intersect in (True, False):
            opts = {"compare_crown_with_ibp": intersect, "optimize_bound_args": {"iteration": 4}}
            bounded = BoundedModule(net, x, bound_opts=opts)
            for method in METHODS:
                given_x = BoundedTensor(x, PerturbationLpNorm(eps=0.3))
                _contained(bounded.compute_bounds(x=(given_x,), C=rows, method=method), low, high, f"{method} {seed}")


def test_nan_weights_never_look_proved() -> None:
    """A NaN in a weight ends in NaN bounds, which compare as not proved, never in numbers."""
    net = KINDS["mlp"](6)
    bounded = BoundedModule(net, torch.zeros(1, *net.input_shape, dtype=torch.float64))
    with torch.no_grad():
        list(net.parameters())[-1].fill_(math.nan)
    x = BoundedTensor(torch.zeros(1, *net.input_shape, dtype=torch.float64), PerturbationLpNorm(eps=0.1))
    for method in METHODS:
        lower, upper = bounded.compute_bounds(x=(x,), method=method)
        assert not bool((lower > -1e30).any()) and not bool((upper < 1e30).any()), method


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(3, 2)],
        [nn.Linear(3, 3), nn.Linear(3, 2)],
        [nn.ReLU()],
        [nn.Linear(3, 2), nn.ReLU()],
        [Scale(0.5, -2.0)],
    ],
    ids=["affine", "affine twice", "relu alone", "ends in relu", "scale alone"],
)
def test_networks_of_few_layers(layers: list[nn.Module]) -> None:
    """No hidden layer, no weights, a nonlinear output: every method works and is exact for affine networks."""
    net = Net((3,), layers).double()
    x = torch.rand(2, 3, dtype=torch.float64) - 0.5
    rows = torch.randn(2, 2, net.n_out, dtype=torch.float64)
    bounded = BoundedModule(net, x)
    for p in (math.inf, 2.0):
        around = Around.ball(x, torch.tensor([0.3, 0.6], dtype=torch.float64), p)
        low, high = _real_range(net, around, rows, 0)
        for method in METHODS:
            given_x = BoundedTensor(x, PerturbationLpNorm(eps=torch.tensor([[0.3], [0.6]]).double(), norm=p))
            bounds = bounded.compute_bounds(x=(given_x,), C=rows, method=method)
            _contained(bounds, low, high, method)
            if not any(isinstance(layer, nn.ReLU) for layer in layers) and method != "IBP":
                assert torch.allclose(bounds[0], low, atol=1e-6) and torch.allclose(bounds[1], high, atol=1e-6), method
            plain = bounded.compute_bounds(x=(given_x,), method=method)
            _contained(plain, *_real_range(net, around, _eye(net), 0), method)


def _eye(net: Net) -> Tensor:
    return torch.eye(net.n_out, dtype=torch.float64).expand(2, -1, -1)
