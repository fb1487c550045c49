"""Tiles: the fixed number of rows that a backward pass works on at a time (DESIGN 2.2).

A row is one linear function C.z of a start node; its lower and its upper bound are done in the same tile, so a
coefficient matrix of a tile is twice as high as the tile. The height follows from model, dtype and settings only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ONE_TILE_MIB = 64
# On feature maps most of a pass works on windows far smaller than the map, so a tile may be higher there.
ONE_TILE_MAP_MIB = 256
MIN_TILES = 8
# Few rows, too, are shared out in pieces, as long as these are large enough to keep a GPU busy.
PIECE_MIB = 32


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows ``start:stop`` of a list of rows, computed at height ``height`` (the last tile is padded to it)."""

    index: int
    start: int
    stop: int
    height: int


def tile_height(
    n_rows: int, widest: int, itemsize: int, batch: int, setting: int | Literal["auto"], on_map: bool = False
) -> int:
    """Rows per tile for a start node of ``n_rows`` rows whose coefficients are at most ``widest`` elements wide.

    `auto` takes all rows in one tile while one copy of its coefficients (both signs) stays under 64 MiB, and otherwise
    at least 8 tiles, each under 64 MiB where a single row allows it (256 MiB for neurons of a feature map).
    """
    if setting != "auto":
        return min(setting, n_rows)
    row_bytes = 2 * widest * itemsize * batch
    limit = (ONE_TILE_MAP_MIB if on_map else ONE_TILE_MIB) * 2**20
    if n_rows * row_bytes <= ONE_TILE_MIB * 2**20:
        return n_rows
    fitting = max(1, limit // row_bytes)
    return max(1, min(-(-n_rows // MIN_TILES), fitting))


def pieces(count: int, widest: int, itemsize: int, batch: int) -> int:
    """Into how many tiles so many rows are cut at least, where `auto` would take them in fewer: 1, 2, 4 or 8.

    Ranks that share the rows out have equal shares then.
    """
    size = 2 * widest * itemsize * batch * count
    return min(MIN_TILES, 1 << max(0, (size // (PIECE_MIB * 2**20)).bit_length() - 1))


def walks(turns: int, most: int) -> tuple[int, int]:
    """``turns`` tiles of a rank, of which at most ``most`` share a walk over the weights: walks, and tiles of each."""
    count = -(-turns // most)
    return count, -(-turns // count)


def cut(n_rows: int, height: int) -> tuple[Tile, ...]:
    """Tiles that cover ``range(n_rows)`` in order: one as high as its rows, or several of equal height."""
    if n_rows <= height:
        return (Tile(0, 0, n_rows, n_rows),) if n_rows else ()
    starts = range(0, n_rows, height)
    return tuple(Tile(i, s, min(s + height, n_rows), height) for i, s in enumerate(starts))
