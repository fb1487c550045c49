"""What goes wrong in a rank of a test: planted in a command's process before it starts its ranks."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_SEEN_S = 0.5  # until others have seen where a rank is; what ends within microseconds nobody sees


@dataclass(frozen=True)
class Fault:
    """``what`` (a function of this module) happens in a rank when the run comes to a stage's method."""

    what: str
    rank: int | None = 1  # None: in every rank
    at: str = "_incomplete"
    attempt: int | None = None  # None: in every one


def plant(fault: Fault) -> None:
    """From now on the fault happens where it is meant to, in this process and its forks."""
    from complete_verifier.driver import instance

    kind: Any = instance._Run
    right, act = getattr(kind, fault.at), globals()[fault.what]

    def wrong(self: Any, *arguments: Any, **named: Any) -> Any:
        attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        here = fault.rank in (None, self.context.rank)
        if here and fault.attempt in (None, attempt):
            self.context.at(f"fault in {fault.at}")
            act()
        return right(self, *arguments, **named)

    setattr(kind, fault.at, wrong)


def sleep() -> None:
    """Hangs where signals are taken."""
    while True:
        time.sleep(1)


def block() -> None:
    """Hangs where no exception of a signal's handler comes through, as in a collective or on a device."""
    mutex = (ctypes.c_byte * 64)()
    lock = ctypes.CDLL(None).pthread_mutex_lock
    lock(ctypes.byref(mutex))
    lock(ctypes.byref(mutex))  # never comes back, not for a signal either


def kill() -> None:
    time.sleep(_SEEN_S)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_second() -> None:
    """Rank 1 is killed while the others are at work by themselves."""
    if os.environ["RANK"] == "1":
        kill()
    sleep()


def vanish() -> None:
    time.sleep(_SEEN_S)
    os._exit(7)


def no_memory() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def no_memory_within() -> None:
    """The next tensor that ranks gather does not fit into the host's memory."""
    from auto_LiRPA.parallel import groups

    groups._gather_into = _refused  # type: ignore[attr-defined]


def kill_before_a_collective() -> None:
    """Rank 1 is killed as it comes to the next tensor that ranks gather; the others are in it."""
    _at_the_next_gather({1: lambda: kill()})


def kill_within_a_collective() -> None:
    """Rank 1 is killed while it waits in it for rank 0."""
    _at_the_next_gather({0: lambda: time.sleep(3 * _SEEN_S), 1: lambda: threading.Timer(_SEEN_S, kill).start()})


def _at_the_next_gather(acts: dict[int, Callable[[], None]]) -> None:
    """The tensors that are meant lie on the device, if there is one."""
    import torch

    from auto_LiRPA.parallel import groups

    gather, act = groups._gather_into, acts.get(int(os.environ["RANK"]))
    on_device = torch.cuda.is_available()

    def gather_then(target: Any, source: Any, group: Any) -> Any:
        nonlocal act
        if act is not None and target.is_cuda == on_device:
            now, act = act, None
            now()
        return gather(target, source, group=group)

    groups._gather_into = gather_then  # type: ignore[attr-defined]


def little_gpu_memory() -> None:
    """Nothing more fits on this rank's GPU."""
    import torch

    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)


def no_memory_for_a_tile() -> None:
    """What the first bounds need does not fit."""
    from complete_verifier.incomplete import stage

    stage.first_bounds = _refused  # type: ignore[assignment]


def _refused(*arguments: Any, **named: Any) -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: 20 GiB")


def wrong() -> None:
    raise ZeroDivisionError("planted")


def no_library() -> None:
    importlib.import_module("no_such_library")
