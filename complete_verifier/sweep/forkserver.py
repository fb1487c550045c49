"""The process that instances are forked from: it imports everything once and then computes nothing itself.

So an instance costs a fork instead of two seconds of imports, and still has a process of its own: what it allocates,
breaks or is killed for is its own affair. Nothing that does not survive a fork (threads of the tensor library, CUDA)
may start here. If the sweep dies, however it dies, the system ends this process, and with it those it forked.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import os
import pickle
import resource
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NoReturn

from complete_verifier.sweep.messages import LONGEST, Ended, Ready, Reap, Start, Started, Target

_PR_SET_PDEATHSIG = 1
_GONE = 5  # exit code of a process whose parent went before it


def serve(control_fd: int, target_name: str, parent: int, preload: Sequence[str]) -> None:
    """Import ``target_name`` (`module:function`), take the shared value, then fork as asked until the sweep is gone.

    Args:
        preload: modules that are imported too, since most children would import them.
    """
    _die_with(parent)
    control = socket.socket(fileno=control_fd)
    shared_bytes = _whole(control)
    gc.disable()
    module, _, function = target_name.partition(":")
    target: Target = getattr(importlib.import_module(module), function)
    for name in preload:
        importlib.import_module(name)
    shared = pickle.loads(shared_bytes)
    gc.freeze()  # what was imported is not copied into every child by its collector
    gc.enable()
    control.send(pickle.dumps(Ready()))
    while True:
        packet, fds, _, _ = socket.recv_fds(control, LONGEST, 2)
        if not packet:
            return
        match pickle.loads(packet):
            case Start(task):
                answer: object = Started(_fork(target, shared, task, control, *fds))
            case Reap(pid):
                answer = _reap(pid)
        control.send(pickle.dumps(answer))


def _whole(control: socket.socket) -> bytes:
    """The shared value: its length in a packet, then its packets."""
    left = int(control.recv(LONGEST))
    parts = []
    while left:
        parts.append(control.recv(LONGEST))
        left -= len(parts[-1])
    return b"".join(parts)


def _fork(target: Target, shared: object, task: object, control: socket.socket, pipe: int, log: int) -> int:
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a linear algebra library's idle threads, which it restarts by itself
        pid = os.fork()
    if pid == 0:
        _child(target, shared, task, control, pipe, log, parent)
    os.close(pipe)
    os.close(log)
    return pid


def _child(
    target: Target, shared: object, task: object, control: socket.socket, pipe: int, log: int, parent: int
) -> NoReturn:
    """In a session of its own, so that a signal can end it with all that it started; output goes to the log."""
    code = 1
    try:
        _die_with(parent)
        os.setsid()
        control.close()
        _first_out_of_memory()
        null = os.open(os.devnull, os.O_RDONLY)
        for source, number in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, number)
        faulthandler.enable()
        with Connection(pipe, readable=False) as channel:
            target(shared, task, channel.send)
        code = 0
    finally:  # whatever came, nothing of the parent's runs on here
        if code:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _reap(pid: int) -> Ended:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        os.killpg(pid, signal.SIGKILL)  # what it started and left; its own number is still taken
    except (ProcessLookupError, PermissionError):
        pass
    _, status, usage = os.wait4(pid, 0)
    return Ended(os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024)


def _die_with(parent: int) -> None:
    """The system ends this process when its parent ends (Linux; elsewhere it ends with its work)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(_GONE)


def _first_out_of_memory() -> None:
    """Where memory runs out, the system shall end an instance, not the sweep; a crash leaves no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("800")
    except OSError:
        pass
