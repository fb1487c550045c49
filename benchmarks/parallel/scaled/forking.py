"""Ranks forked from one process that has imported everything: a launch on a CPU costs a fraction of a second.

For dry runs only: a GPU's driver does not survive a fork. Torch is imported and not used before, so no thread of it
runs yet and every child starts clean. The scripts see the environment that torchrun would give them.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.parallel.starting import HERE

GRACE_S = 3.0  # after one rank has failed the others are ended
TAIL = 3000


def load(scripts: Sequence[str]) -> None:
    """Import what the ranks need, once."""
    for script in dict.fromkeys(scripts):
        importlib.import_module(_module(script))


def run_forked(script: str, ranks: int, arguments: Sequence[str], timeout_s: float) -> tuple[int | None, str]:
    """Exit code (None: the time limit) and the last lines that are no figures, of all ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"rank{rank}" for rank in range(ranks)]
        children = [_fork(script, rank, ranks, port, arguments, logs[rank]) for rank in range(ranks)]
        codes, late = _wait(children, timeout_s)
        text = "\n".join(log.read_text(encoding="utf-8", errors="replace") for log in logs if log.exists())
    lines = [line for line in text.splitlines() if not line.startswith("{")]
    worst = next((code for code in codes if code), 0)
    return (None if late else worst), "\n".join(lines)[-TAIL:]


def _wait(children: Sequence[int], timeout_s: float) -> tuple[list[int], bool]:
    """Exit codes, and whether the time was over; nothing is left running."""
    deadline = time.monotonic() + timeout_s
    end, codes = deadline, dict[int, int]()
    while len(codes) < len(children) and time.monotonic() < end:
        for child in children:
            if child not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) and end == deadline:
            end = min(deadline, time.monotonic() + GRACE_S)
        time.sleep(0.005)
    late = len(codes) < len(children) and not any(codes.values())
    for child in children:
        if child not in codes:
            os.kill(child, signal.SIGKILL)
            codes[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [codes[child] for child in children], late


def _fork(script: str, rank: int, ranks: int, port: int, arguments: Sequence[str], log: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        size, place = str(ranks), str(rank)
        os.environ.update(
            RANK=place,
            LOCAL_RANK=place,
            WORLD_SIZE=size,
            LOCAL_WORLD_SIZE=size,
            GROUP_RANK="0",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        sys.argv = [str(HERE / script), *arguments]
        importlib.import_module(_module(script)).main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (a child must never return into the parent's code)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _module(script: str) -> str:
    return "benchmarks.parallel." + script.removesuffix(".py").replace("/", ".")
