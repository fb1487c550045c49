"""Ranks forked from one process that has imported everything: a launch costs a fraction of a second.

A new Python spends most of a short job on imports. Neither threads nor a GPU's driver survive a fork, so the parent
only imports: it computes nothing, and what it wants to know of GPUs a fork tells it (`gpus`). Each rank leads a session
of its own, by which all that it has started can be ended, and the system ends it when its parent ends. The scripts see
the environment that torchrun would give them, and choose their number of threads themselves (`measuring.join`).
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

import torch

from benchmarks.parallel.starting import HERE, free_port

# What the scripts import when they need it. Nothing that compiles for a GPU, or asks for one when it is imported.
LATER = ("onnx",)
END_S = 10.0  # after each of both signals
_PR_SET_PDEATHSIG = 1


@dataclass
class Rank:
    """A process that was forked. ``code``: None while it runs, negative if a signal ended it."""

    pid: int
    code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def send(self, number: int) -> None:
        """A signal to all of its session, which may outlive it; to itself as long as it has none."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            if self.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(self.pid, number)


def load(scripts: Iterable[str]) -> None:
    """Import what the ranks need, once."""
    for script in dict.fromkeys(scripts):
        importlib.import_module(_module(script))
    for name in LATER:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or ranks' collectors would go through all that was imported, and copy it, while a pass is timed


def gpus() -> int:
    """How many this machine has, counted in a fork: asking may start the driver."""
    ours, theirs = os.pipe()
    pid = _fork()
    if pid == 0:
        try:
            os.write(theirs, str(torch.cuda.device_count()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as file:
        count = int(file.read() or b"0")
    os.waitpid(pid, 0)
    return count


def environments(ranks: int) -> list[dict[str, str]]:
    """What torchrun would tell each rank; nothing to one alone."""
    if ranks == 1:
        return [{}]
    size = str(ranks)
    common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def begin(script: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Rank:
    """Fork a rank that runs a script's ``main``; what it says is appended to ``log``.

    Raises:
        RuntimeError: CUDA has been started here, which the rank could not use.
    """
    if torch.cuda.is_initialized():
        raise RuntimeError("CUDA has been started in the process that ranks are forked from")
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = _fork()
    if pid:
        return Rank(pid)
    code = 1
    try:
        _become_rank(parent, log)
        os.environ.update(environment)
        sys.argv = [str(HERE / script), *arguments]
        _main(script)()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 (a rank must never return into its parent's code)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(ranks: Sequence[Rank]) -> None:
    """End what is still there, with all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for rank in ranks:
            rank.send(number)
        until = time.monotonic() + END_S
        while any([rank.poll() is None for rank in ranks]) and time.monotonic() < until:
            time.sleep(0.01)


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of idle threads of a linear algebra library, which starts them again itself
        return os.fork()


def _become_rank(parent: int, log: Path) -> None:
    os.setsid()
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115 (as long as the process)
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    getLogger().handlers.clear()  # they write to the parent's streams


def _main(script: str) -> Callable[[], object]:
    found: Callable[[], object] = importlib.import_module(_module(script)).main
    return found


def _module(script: str) -> str:
    return "benchmarks.parallel." + script.removesuffix(".py").replace("/", ".")
