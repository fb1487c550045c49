"""The process that ranks of some launches are forked from: a job of `tests.parallel.zygote`, for `launching`.

Torch is imported and not used before the fork: no thread of it runs yet, so each child starts clean in milliseconds.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.parallel.launching import Launch

GRACE_S = 3.0  # for the stacks to be written
_PR_SET_PDEATHSIG = 1


def main(plan: Path) -> None:
    """Run the launches of a plan, one after the other; each leaves ``rank*.pt``, ``rank*.log`` and ``codes``."""
    launches: list[tuple[Launch, Path]] = pickle.loads(plan.read_bytes())
    functions = [_function(launch.function) for launch, _ in launches]
    for (launch, folder), function in zip(launches, functions, strict=True):
        began = time.monotonic()
        codes, late = _run(launch, folder, function)
        (folder / "codes").write_bytes(pickle.dumps((codes, late, time.monotonic() - began)))


def _function(name: str) -> Callable[[Any], Any]:
    module, _, function = name.partition(":")
    found: Callable[[Any], Any] = getattr(importlib.import_module(module), function)
    return found


def _run(launch: Launch, folder: Path, function: Callable[[Any], Any]) -> tuple[list[int | None], bool]:
    """Exit codes (negative: a signal; None: killed here) and whether the time was over."""
    children = [_fork(launch, rank, folder, function) for rank in range(launch.size)]
    codes: dict[int, int] = {}
    deadline = time.monotonic() + launch.timeout_s
    end = deadline
    while len(codes) < launch.size and time.monotonic() < end:
        for rank, child in enumerate(children):
            if rank in codes:
                continue
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[rank] = os.waitstatus_to_exitcode(status)
        if launch.grace_s is not None and any(codes.values()):
            end = min(end, time.monotonic() + launch.grace_s) if end == deadline else end
        time.sleep(0.01)
    late = len(codes) < launch.size and time.monotonic() >= deadline
    left = [child for rank, child in enumerate(children) if rank not in codes]
    for child in left:
        os.kill(child, signal.SIGUSR1)  # every thread's stack into its log
    if left:
        time.sleep(0.3)
    for child in left:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return [codes.get(rank) for rank in range(launch.size)], late


def _fork(launch: Launch, rank: int, folder: Path, function: Callable[[Any], Any]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        os.environ.update(_environment(launch, rank), **launch.env)
        code = _work(launch, rank, folder, function)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 (a child must never return into the parent's code)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _environment(launch: Launch, rank: int) -> dict[str, str]:
    """What torchrun would set."""
    size = str(launch.size)
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(launch.port),
    }


def _work(launch: Launch, rank: int, folder: Path, function: Callable[[Any], Any]) -> int:
    import torch

    result = function(launch.case)
    half = folder / f"rank{rank}.half"
    torch.save(result, half)
    half.rename(folder / f"rank{rank}.pt")
    return 0

