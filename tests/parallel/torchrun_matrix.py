"""A part of the matrix on the ranks of plain torchrun: ``python -m tests.parallel.torchrun_matrix FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from tests.parallel.matrix import Layout, Task, run
from tests.parallel.networks import RELU_NETS

LAYOUTS = (
    Layout("rows", "single", (2,), rows="shard"),
    Layout("fsdp+rows+domains", "fsdp", (2,), rows="shard", domains="shard"),
)
TASKS = tuple(Task(net, kind) for net in RELU_NETS for kind in ("crown", "keep"))


def main(folder: Path) -> None:
    """Compute and write this rank's results."""
    torch.save(run((90.0, [(layout, list(TASKS)) for layout in LAYOUTS])), folder / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
