"""A rank that runs a measuring script of the experiments, in a process that has its imports already."""

from __future__ import annotations

import os
import runpy
import sys

from benchmarks.parallel import of_config as _imported_for_all_ranks  # noqa: F401
from benchmarks.parallel.starting import HERE, Job

_SEAT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def script(case: tuple[Job, str]) -> None:
    """``case``: a job, and the file for its figures. As `starting.run_jobs`, without the imports of new processes."""
    job, out = case
    if job.ranks == 1:  # the script may start ranks of its own
        for name in _SEAT:
            os.environ.pop(name, None)
    sys.argv = [str(HERE / job.script), *job.arguments, "--out", out]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
