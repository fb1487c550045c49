"""Peak memory of bounding passes, counted by storage: set by tile and blocks, not by the width of the network."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from auto_LiRPA.bounds import intermediate
from auto_LiRPA.parallel.settings import ParallelSettings
from benchmarks import networks
from benchmarks.live_bytes import LiveBytes

KIB, MIB = 2**10, 2**20
HIDDEN, DEPTH = 512, 4
BLOCK_MIB = 0.05
INPUTS = 784


def tile_bytes(tile_rows: int, widest: int = INPUTS) -> int:
    """One copy of a tile's coefficients, both signs, float32, where the network is widest."""
    return 2 * tile_rows * widest * 4


def allowed(tile_rows: int, copies: float, hidden: int = HIDDEN) -> float:
    """So many copies of a tile, two blocks, and what every neuron keeps: boxes and lines, 12 numbers at most."""
    widest = max(INPUTS, hidden)
    return copies * tile_bytes(tile_rows, widest) + 2 * BLOCK_MIB * MIB + 12 * 4 * (DEPTH * hidden + INPUTS)


def peak(
    tile_rows: int, method: str, hidden: int = HIDDEN, block_mib: float = BLOCK_MIB, **optimize: object
) -> tuple[int, tuple[Tensor, Tensor], int]:
    """Greatest bytes alive among what a call made (the weights are older), its bounds, and bytes alive after it."""
    net = networks.mlp(hidden, DEPTH)
    x = torch.rand(1, INPUTS, generator=torch.Generator().manual_seed(1))
    parallel = ParallelSettings(tile_rows=tile_rows, block_mib=block_mib)
    bounded = BoundedModule(net, x, bound_opts={"optimize_bound_args": optimize}, parallel=parallel)
    given = BoundedTensor(x, PerturbationLpNorm(eps=0.02))
    with LiveBytes() as meter, torch.no_grad():
        bounds = bounded.compute_bounds(x=(given,), method=method)
        gc.collect()
    return meter.peak, bounds, meter.live


@pytest.mark.parametrize("tile_rows", [16, 64, 128])
def test_crown_needs_three_copies_of_a_tile(tile_rows: int) -> None:
    """Coefficients in, coefficients out, and their positive part: not one per layer, and not all rows."""
    used, _, _ = peak(tile_rows, "CROWN")
    assert used <= allowed(tile_rows, 3), f"{used / KIB:.0f} KiB, allowed {allowed(tile_rows, 3) / KIB:.0f}"


def test_all_rows_at_once_would_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit above tells tiles from no tiles: the same call with one tile for all rows breaks it by far."""
    monkeypatch.setattr(intermediate, "tile_height", lambda n_rows, *rest: n_rows)
    used, _, _ = peak(64, "CROWN")
    assert used > 3 * allowed(64, 3)


def test_the_peak_grows_with_the_tile_not_with_the_rows() -> None:
    """Twice the width at the same tile: what grows is the row, not the number of rows that are alive."""
    narrow, wide = (peak(32, "CROWN", hidden=hidden)[0] for hidden in (512, 1024))
    assert wide <= allowed(32, 3, hidden=1024)
    assert wide < 1.6 * narrow
    few, many = (peak(rows, "CROWN")[0] for rows in (32, 128))
    assert 2.5 * few < many < 4.5 * few


def test_nothing_stays_alive_but_the_answer() -> None:
    """After the call: bounds and the boxes that a module remembers, no coefficients."""
    for method in ("CROWN", "CROWN-Optimized"):
        _, _, left = peak(256, method, iteration=2, interm_alpha="stream")
        assert left <= 2 * 4 * (DEPTH * HIDDEN + INPUTS + 10) + 4 * KIB, f"{method}: {left / KIB:.0f} KiB"


def test_streamed_alpha_crown_needs_some_copies_of_a_tile() -> None:
    """Coefficients of each layer of the tile, slopes, gradient and two moments of the tile's rows: no layer's whole."""
    used, _, _ = peak(64, "CROWN-Optimized", iteration=2, interm_alpha="stream")
    assert used <= allowed(64, 24), f"{used / KIB:.0f} KiB, allowed {allowed(64, 24) / KIB:.0f}"


def test_tiles_agree() -> None:
    """128 and 2048 rows a tile, and tiny blocks: the same bounds to 1e-6."""
    wanted = peak(2048, "CROWN", block_mib=16.0)[1]
    for tile_rows, block_mib in ((128, 16.0), (128, BLOCK_MIB)):
        for ours, other in zip(peak(tile_rows, "CROWN", block_mib=block_mib)[1], wanted, strict=True):
            assert bool(((ours - other).abs() <= 1e-6 * (1 + other.abs())).all())


@pytest.mark.soak
def test_four_thousand_neurons_a_layer() -> None:
    """784-4096x4-10 at 512 rows a tile: under 120 MiB besides the weights (205 MiB)."""
    used, _, _ = peak(512, "CROWN", hidden=4096, block_mib=16.0)
    assert used < 120 * MIB, f"{used / MIB:.1f} MiB"
