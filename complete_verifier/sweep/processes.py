"""The sweep's side of its processes: starting them, hearing from them, ending them."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import IO

from auto_LiRPA.errors import WorkerFailed
from complete_verifier.sweep.messages import LONGEST, Ended, Ready, Reap, Start, Started

# Not `python -m`: the packages are found where this process found them, whatever the working directory.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from complete_verifier.sweep.forkserver import serve;"
    "serve(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5:])"
)
# "Is there a GPU?" must not start CUDA in the process that is forked from: it would be unusable in all others.
_ENVIRONMENT = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
_LOG_TAIL = 1 << 16


class ServerLost(Exception):
    """The process that instances are forked from is gone, and they with it."""


@dataclass(slots=True, eq=False)
class Child:
    """One forked process."""

    pid: int
    channel: Connection
    log: IO[bytes]
    silent: bool = False  # it has closed its pipe: it ends, or has ended

    def messages(self) -> Iterator[object]:
        """What it has said since; ``silent`` after the last word, a message cut off by its death is dropped."""
        try:
            while not self.silent and self.channel.poll():
                yield self.channel.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self.silent = True

    def kill(self) -> None:
        """End it at once, with all that it started."""
        for end in (os.killpg, os.kill):  # it may not lead a group yet
            try:
                end(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def output(self) -> str:
        """The end of what it wrote to its standard output and error."""
        size = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, size - _LOG_TAIL))
        return self.log.read().decode(errors="replace")


class Processes:
    """Forks processes that run ``target`` (`module:function`). A context: on the way out all of them are ended."""

    def __init__(self, target: str, shared: object, preload: Sequence[str] = ()) -> None:
        self._target, self._shared, self._preload = target, pickle.dumps(shared), preload
        self._control: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()
        self._ready = False
        self._children: list[Child] = []

    def __enter__(self) -> Processes:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in list(self._children):
            child.kill()
            self._forget(child)
        self._end()
        self._log.close()

    def start(self, task: object) -> Child:
        """A process that runs this task.

        Raises:
            ServerLost: there is no process to fork from any more; `restart` makes one.
            WorkerFailed: it could not even be started.
        """
        self._wait_until_ready()
        ours, theirs = os.pipe()
        log: IO[bytes] = tempfile.TemporaryFile()
        try:
            answer = self._ask(Start(task), theirs, log.fileno())
        except ServerLost:
            os.close(ours)
            log.close()
            raise
        finally:
            os.close(theirs)
        assert isinstance(answer, Started)
        child = Child(answer.pid, Connection(ours, writable=False), log)
        self._children.append(child)
        return child

    def reap(self, child: Child) -> tuple[Ended, str]:
        """Wait for the end of a child that is silent, and forget it. Returns the end of its output too."""
        answer = self._ask(Reap(child.pid))
        assert isinstance(answer, Ended)
        output = child.output()
        self._forget(child)
        return answer, output

    def wait(self, children: Sequence[Child], seconds: float) -> None:
        """Until one of them says something, or for so many seconds."""
        wait([child.channel for child in children], seconds)

    def restart(self) -> None:
        """After `ServerLost`: forget all children, whom the system has ended too, and fork from a new process."""
        for child in list(self._children):
            child.kill()
            self._forget(child)
        self._end()
        self._begin()

    # -- the process that forks -----------------------------------------------------------------------------------
    def _begin(self) -> None:
        """Start it; while it imports, this process goes on."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = [json.dumps(sys.path), str(theirs.fileno()), self._target, str(os.getpid()), *self._preload]
            self._server = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *words],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,  # Ctrl-C is for the sweep
            )
        self._control, self._ready = ours, False

    def _wait_until_ready(self) -> None:
        if self._ready:
            return
        assert self._control is not None
        try:
            self._control.send(str(len(self._shared)).encode())
            for at in range(0, len(self._shared), LONGEST // 2):
                self._control.send(self._shared[at : at + LONGEST // 2])
            packet = self._control.recv(LONGEST)
        except OSError:
            packet = b""
        if not packet or not isinstance(pickle.loads(packet), Ready):
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").split("\n")
            why = next((line for line in reversed(lines) if line.strip()), "no reason given")
            raise WorkerFailed(f"the process that instances are forked from did not start: {why}")
        self._ready = True

    def _ask(self, request: object, *fds: int) -> object:
        assert self._control is not None
        try:
            socket.send_fds(self._control, [pickle.dumps(request)], fds)
            packet = self._control.recv(LONGEST)
        except OSError:
            packet = b""
        if not packet:
            raise ServerLost
        return pickle.loads(packet)

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def _forget(self, child: Child) -> None:
        self._children.remove(child)
        child.channel.close()
        child.log.close()
