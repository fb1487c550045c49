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
# Rows that an optimisation bounds again and again, on whole maps, with all coefficients at hand for the gradient: a
# tile makes several times its size, so it is less high; and all wait for every start node, so few rows are shared too.
OPTIMISED_TILE_MIB = 32
OPTIMISED_PIECE_MIB = 16
# Tiles more that a list may be cut into, so that ranks have equally many: at most this share.
MORE_TILES = 0.34
# Low tiles of passes through convolutions have heights that are multiples of this, so that batches of maps (both signs)
# are of 32, 64, 96 or 128. Where one was of another size, the peak of an H100 was a gigabyte higher: what a Fourier
# transform of the weights takes in cuDNN (inferred from the peaks of two ranks, not from a profile).
MAP_STEP = 16


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


def pieces(count: int, widest: int, itemsize: int, batch: int, least_mib: int = PIECE_MIB) -> int:
    """Into how many tiles so many rows are cut at least, where `auto` would take them in fewer: 1, 2, 4 or 8.

    Ranks that share the rows out have equal shares then. ``least_mib``: of a piece.
    """
    size = 2 * widest * itemsize * batch * count
    return min(MIN_TILES, 1 << max(0, (size // (least_mib * 2**20)).bit_length() - 1))


def optimised_height(
    n_rows: int, count: int, widest: int, itemsize: int, batch: int, setting: int | Literal["auto"], on_map: bool
) -> tuple[int, int]:
    """Rows per tile for ``count`` rows of a start node of ``n_rows`` that an optimisation works on, and at most.

    ``on_map``: whether their passes go through convolutions.
    """
    limit = tile_height(n_rows, widest, itemsize, batch, setting)
    if setting != "auto":
        return limit, limit
    if on_map:
        limit = max(1, min(limit, OPTIMISED_TILE_MIB * 2**20 // (2 * widest * itemsize * batch)))
        limit -= limit % MAP_STEP if limit > MAP_STEP else 0
    return min(limit, -(-count // pieces(count, widest, itemsize, batch, OPTIMISED_PIECE_MIB))), limit


def walks(turns: int, most: int) -> tuple[int, int]:
    """``turns`` tiles of a rank, of which at most ``most`` share a walk over the weights: walks, and tiles of each."""
    count = -(-turns // most)
    return count, -(-turns // count)


def cut_evenly(n_rows: int, height: int, step: int = 1, most: int | None = None) -> tuple[Tile, ...]:
    """As `cut` at ``height``, for rows that every iteration works on, start node by start node.

    Instead of a last tile that is mostly padding all are less high; and their number is a multiple of 8, 4 or 2 where
    that takes few more, since ranks wait for each other at the end of every list: 5 tiles take two ranks as long as 6.
    ``step``: heights from it to four times as much are multiples of it, unless that is more than ``most`` (by itself
    ``height``).
    """
    if n_rows <= step:
        return cut(n_rows, height)
    count = -(-n_rows // height)
    if count > 1:
        count = next((m for m in (-(-count // of) * of for of in (8, 4, 2)) if m <= (1 + MORE_TILES) * count), count)
    even = -(-n_rows // count)
    stepped = -(-even // step) * step
    if even <= 4 * step and stepped <= (height if most is None else most):
        even = stepped
    return tuple(Tile(i, start, min(start + even, n_rows), even) for i, start in enumerate(range(0, n_rows, even)))


def cut(n_rows: int, height: int) -> tuple[Tile, ...]:
    """Tiles that cover ``range(n_rows)`` in order: one as high as its rows, or several of equal height."""
    if n_rows <= height:
        return (Tile(0, 0, n_rows, n_rows),) if n_rows else ()
    starts = range(0, n_rows, height)
    return tuple(Tile(i, s, min(s + height, n_rows), height) for i, s in enumerate(starts))
