"""How many domains are bounded together: every domain once, few padded rows, the same on all ranks."""

from __future__ import annotations

import pytest
import torch

from auto_LiRPA.bounds.domains.engine import SIZES
from auto_LiRPA.graph.ir import Graph
from complete_verifier.bab.domains import REST, cuts
from complete_verifier.bab.search import GPU_TILE, LARGEST_GPU_TILE, gpu_tile, synchronous_tile
from tests.nets import dense_layers, mlp


@pytest.mark.parametrize("height", [1, 7, 32, 1024, 4096, 8192, 16384])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 4095, 4097, 9000, 16384, 16385, 40000])
def test_tiles_cover_a_batch_and_waste_little(count: int, height: int) -> None:
    """Buffers hold no more than a rest's rows beside the domains' own, or those of one tile of the least size."""
    found = cuts(count, height)
    assert [i for start, stop in found for i in range(start, stop)] == list(range(count))
    assert all(stop - start <= height for start, stop in found)
    assert len(found) <= count // height + 3 if height > REST else len(found) == -(-count // height)
    if height > REST:
        padded = sum(next(size for size in SIZES if size >= stop - start) for start, stop in found)
        assert padded < count + REST


def _network(width: int) -> Graph:
    return mlp(dense_layers([4, width, 3], 0))


def test_tiles_of_a_gpu_follow_the_network() -> None:
    """More domains of a small network; a synchronous job is the same on every number of ranks."""
    tiles = [gpu_tile(_network(width)) for width in (64, 2048, 2049, 4096, 4097, 9000)]
    assert tiles == [LARGEST_GPU_TILE, LARGEST_GPU_TILE, 8192, 8192, GPU_TILE, GPU_TILE]
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [synchronous_tile(_network(width), gpu) for width in (64, 4096, 4097)] == [GPU_TILE, GPU_TILE, 1024]
    assert synchronous_tile(_network(64), cpu) == 1024
