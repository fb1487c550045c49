"""Weights that measurements draw, kept in a file: ranks of this run and of later ones map it into memory.

Drawing takes seconds for each GiB, as a generator's numbers follow from each other. Of a mapped file each rank reads
what it keeps, and the machine holds it once for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from auto_LiRPA.parallel.context import DistributedContext


def mapped(
    context: DistributedContext, path: Path, shapes: Sequence[tuple[int, ...]], draw: Callable[[], Iterable[Tensor]]
) -> list[Tensor]:
    """Float32 tensors of these shapes, mapped from a file. The first rank of a machine writes it if it is missing.

    Args:
        draw: the file's numbers, in tensors of any shape.
    """
    if context.local_rank == 0 and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(f".{os.getpid()}")
        with open(made, "wb") as file:
            for part in draw():
                part.detach().numpy().tofile(file)
        made.rename(path)  # a file of this name is whole
    context.world.barrier()
    sizes = [prod(shape) for shape in shapes]
    flat = torch.from_file(str(path), shared=False, size=sum(sizes), dtype=torch.float32)
    return [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
