"""What a rank does for the tests of searches that split nonlinear inputs: whole searches, and what they stored."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch

from auto_LiRPA.errors import ContractError
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.groups import Observer
from auto_LiRPA.parallel.settings import ParallelSettings
from complete_verifier.bab import nonlinear_search as searching
from complete_verifier.bab.checkpoint import Checkpoint, CheckpointWriter, Fingerprint
from complete_verifier.bab.checkpoint_root import root_result, root_tensors
from complete_verifier.bab.keeper import Keeper
from complete_verifier.bab.schedule_free import FreeRunning
from complete_verifier.bab.settings import BabSettings
from complete_verifier.incomplete.settings import IncompleteSettings
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.problem import Clock
from tests.parallel.matrix import problem_of, spied_bounds
from tests.parallel.networks import BLOCK_MIB, NETS
from tests.parallel.skew import Dawdler

NET, RADIUS, SLACK = "attention", 0.1, 0.645
JOB = 3  # children
SETTINGS = BabSettings(batch_size=4, iterations=2, lr_alpha=0.1, lr_beta=0.1, max_iterations=40, auto_enlarge=False)
PRINT = Fingerprint("n", "p", {})


@dataclass(frozen=True)
class Run:
    """One search. ``slack``: the larger, the easier. ``folder``: a checkpoint goes there after every round.

    ``plant``: a fault, by the name of a function of this module. ``dawdle``: ranks sleep at random.
    """

    name: str
    mode: Literal["single", "fsdp"] = "single"
    domains: Literal["shard", "replicate"] = "replicate"
    settings: BabSettings = SETTINGS
    slack: float = SLACK
    folder: str = ""
    resume: bool = False
    dawdle: bool = False
    plant: str = ""


@dataclass
class Trace:
    """How a search ended, and the domains that came into this rank's queue."""

    result: tuple[Any, ...] = ()
    bounded: dict[int, float] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)
    error: str = ""


def searches(runs: Sequence[Run]) -> dict[str, Trace]:
    """All runs, one after the other."""
    found = {}
    for run in runs:
        sys.stderr.write(f"{run.name}\n")  # for the log of a rank that fails
        found[run.name] = _searched(run)
    return found


def _searched(run: Run) -> Trace:
    settings = ParallelSettings(
        mode=run.mode, domains=run.domains, rows="replicate", tile_rows=NETS[NET].tile_rows, block_mib=BLOCK_MIB,
        threads=1, timeout_s=60,
    )  # fmt: skip
    observer: Observer | None = None
    if run.dawdle:
        observer = Dawdler(1, int(DistributedContext.from_env(settings).rank))
    context = DistributedContext.from_env(settings, observer=observer)
    trace = Trace()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(searching, "JOB_CHILDREN", JOB))
        stack.enter_context(mock.patch.object(CheckpointWriter, "due", lambda self, size, seconds_left: True))
        stack.enter_context(spied_bounds(trace.bounded))
        if run.plant:
            stack.enter_context(globals()[run.plant](context))
        graph = NETS[NET].make(context.make_store(), torch.float32)
        problem = problem_of(graph, NET, torch.float32, context, RADIUS, run.slack)
        problem = replace(problem, clock=Clock(time.monotonic(), 300.0))
        alpha = replace(problem.bounds.alpha, mode="fixed")
        start = run_incomplete(replace(problem, bounds=replace(problem.bounds, alpha=alpha)), IncompleteSettings())
        keeper = None
        if run.folder:
            folder = Path(run.folder)
            kept = Checkpoint.read(folder) if run.resume else None
            if kept is not None:
                trace.resumed = [i for piece in kept.pieces() for i in piece["0000"].tolist()]
                start = root_result(problem, kept.root())
            keeper = Keeper(CheckpointWriter(folder, PRINT, 0.0, root_tensors(start)), kept)
        try:
            found = searching.nonlinear_search(problem, start, run.settings, None, keeper)
        except ContractError as error:
            trace.error = str(error)
            return trace
    trace.result = (found.closed, found.stopped_by, found.domains_visited, found.rounds, found.worst_bound)
    return trace


# -- faults ------------------------------------------------------------------------------------------------------------
def skips_a_domain(context: DistributedContext) -> Any:
    """The last rank leaves one of its parents out."""
    run = FreeRunning.run

    def careless(self: Any, work: Any, first_id: int, number: int) -> Any:
        if context.rank == context.world_size - 1 and len(work.parents) > 1:
            work = replace(work, parents=work.parents.pick(torch.arange(1, len(work.parents))))
        return run(self, work, first_id, number)

    return mock.patch.object(FreeRunning, "run", careless)
