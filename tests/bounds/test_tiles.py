"""Tiles and blocks of any size: the same bounds, made of more and smaller pieces (DESIGN 2.2, 2.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.alpha import alpha_crown
from auto_LiRPA.bounds.intermediate import crown_boxes
from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings, IntermAlpha
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.tiles import ONE_TILE_MIB, cut, tile_height
from auto_LiRPA.values import Box
from tests.nets import dense_layers, mlp, residual

SIZES = [5, 17, 17, 17, 7]
SETTINGS = BoundSettings(alpha=AlphaSettings(iterations=4, lr_alpha=0.2))
MODES: tuple[IntermAlpha, ...] = ("keep", "fixed", "stream")


TileRows = int | Literal["auto"]


def context(tile_rows: TileRows) -> DistributedContext:
    return DistributedContext.single(settings=ParallelSettings(tile_rows=tile_rows))


def question(kind: str, block_mib: float, batch: int = 2) -> tuple[Graph, Box, Tensor]:
    """A network, a box with so many elements, and rows."""
    graph = (mlp if kind == "mlp" else residual)(dense_layers(SIZES, 3), block_mib)
    gen = torch.Generator().manual_seed(3)
    x = torch.randn(batch, SIZES[0], generator=gen, dtype=torch.float64)
    c = torch.randn(1, 6, SIZES[-1], generator=gen, dtype=torch.float64)
    return graph, Box(x - 0.4, x + 0.4), c


def rows(
    kind: str, tile_rows: TileRows, block_mib: float, method: Method, settings: BoundSettings
) -> tuple[Tensor, int]:
    """Bounds of both sides, and how many tiles that took."""
    graph, region, c = question(kind, block_mib)
    ours = context(tile_rows)
    with torch.no_grad():
        found = compute(graph, region, Query(c=c), method, ours, settings)
    assert found.lower is not None and found.upper is not None
    return torch.stack([found.lower.bound, found.upper.bound]), ours.counters.tiles


# so small that each 17 x 17 weight has three blocks and a ragged last one (6 + 6 + 5 rows)
SMALL_BLOCK = 6 * 17 * 8 / 2**20


@pytest.mark.parametrize("block_mib", [16.0, SMALL_BLOCK])
@pytest.mark.parametrize("kind", ["mlp", "residual"])
@pytest.mark.parametrize("method", [Method.CROWN_IBP, Method.CROWN])
def test_crown(kind: str, method: Method, block_mib: float) -> None:
    """Equal to the last digits for tiles of 1, 2, 4 (all ragged), 7 and 100 rows, and `auto`."""
    wanted, fewest = rows(kind, "auto", 16.0, method, SETTINGS)
    previous = 10**9
    for tile_rows in (1, 2, 4, 7, 100):
        found, tiles = rows(kind, tile_rows, block_mib, method, SETTINGS)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        assert fewest <= tiles <= previous
        previous = tiles
    assert rows(kind, 1, block_mib, method, SETTINGS)[1] >= 3 * fewest, "smaller tiles are not more tiles"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_alpha_crown(kind: str, mode: IntermAlpha) -> None:
    """Equal up to rounding that a few Adam steps carry on; soundness does not hang on it."""
    settings = replace(SETTINGS, alpha=replace(SETTINGS.alpha, mode=mode))
    wanted, _ = rows(kind, "auto", 16.0, Method.ALPHA_CROWN, settings)
    for tile_rows in (2, 4, 7):
        found, _ = rows(kind, tile_rows, SMALL_BLOCK, Method.ALPHA_CROWN, settings)
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_boxes_and_slopes_belong_to_their_neurons(kind: str) -> None:
    """The boxes of all layers, and the joint slopes of the final rows, do not depend on the cut."""
    graph, region, c = question(kind, 16.0)
    tile_rows: list[TileRows] = ["auto", 3, 4]
    with torch.no_grad():
        whole, pieces = (crown_boxes(graph, region, context(t), SETTINGS) for t in tile_rows[:2])
        for node, box in whole.boxes.items():
            torch.testing.assert_close(pieces.boxes[node].lower, box.lower, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(pieces.boxes[node].upper, box.upper, rtol=1e-12, atol=1e-12)
        assert max(len(s.tiles) for s in pieces.starts) >= 3
        assert any(len(s.index) % 3 for s in pieces.starts), "no tile is ragged"
        found = [alpha_crown(graph, region, c, context(t), SETTINGS) for t in tile_rows[::2]]
    for node in found[0].slopes[0]:
        parts = [tile[node] for _, tile in sorted(found[1].slopes.items())]
        together = torch.cat(parts, dim=1)[:, :6]  # the padding rows come last
        torch.testing.assert_close(together, found[0].slopes[0][node], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("setting", ["auto", 1, 3, 512])
@pytest.mark.parametrize("n_rows", [1, 2, 7, 100, 5000])
def test_tiles_cover_the_rows_once(n_rows: int, setting: TileRows) -> None:
    """In order, all of one height but a single tile; `auto` stays under its limit or cuts into at least 8."""
    for widest in (10, 1000, 200_000):
        height = tile_height(n_rows, widest, 4, 2, setting)
        tiles = cut(n_rows, height)
        assert [i for t in tiles for i in range(t.start, t.stop)] == list(range(n_rows))
        assert [t.index for t in tiles] == list(range(len(tiles)))
        assert all(t.height == height for t in tiles) and all(t.stop - t.start == height for t in tiles[:-1])
        if setting == "auto":
            size = 2 * widest * 4 * 2 * height
            assert size <= ONE_TILE_MIB * 2**20 or height == 1
            assert len(tiles) == 1 or len(tiles) >= min(8, n_rows) - 1
        else:
            assert height <= setting
    assert cut(0, 5) == ()
