"""First worker functions: what a rank sees, for the tests of the launcher itself."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings


def identity(case: Any) -> dict[str, Any]:
    """This rank's numbers as every rank gathered them, and the case."""
    context = DistributedContext.from_env(ParallelSettings(rows="shard", threads=1, timeout_s=20))
    every = context.world.gather(torch.tensor([context.rank]))
    found = {"ranks": every.flatten().tolist(), "case": case, "local": int(os.environ["LOCAL_RANK"])}
    context.close()
    return found


def hangs(rank: int) -> int:
    """``rank`` sleeps for ever and the others wait for it."""
    context = DistributedContext.from_env(ParallelSettings(rows="shard", threads=1, timeout_s=600))
    if context.rank == rank:
        time.sleep(600)
    context.world.barrier()
    return context.rank


def fails(rank: int) -> int:
    """``rank`` raises and the others wait for it."""
    context = DistributedContext.from_env(ParallelSettings(rows="shard", threads=1, timeout_s=600))
    if context.rank == rank:
        raise ValueError("planted")
    context.world.barrier()
    return context.rank


def main(note: Path) -> None:
    """A job that hangs, and so does a process of it that has left its session."""
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(600)
    note.write_text(f"{os.getpid()} {child}")
    time.sleep(600)
