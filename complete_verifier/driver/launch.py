"""`abcrown --nproc N`: forks the ranks of this machine, keeps the store that they meet through, and watches them end.

The command line has been read and everything is imported by then, so a rank costs a fork instead of seconds of imports,
all ranks have the same settings, and bad settings are told once. Nothing that does not survive a fork (threads of the
tensor library, CUDA) has been started. The exit code and the one line are the command's own; `torchrun` ends with 1 and
several tracebacks instead, and leaves its workers behind when it is killed.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from auto_LiRPA.errors import ConfigError
from auto_LiRPA.parallel.board import Board, BoardLost
from auto_LiRPA.parallel.watch import Beat, step_of
from complete_verifier.config import LoadedConfig
from complete_verifier.driver.boundary import INTERNAL, INTERRUPTED, OK, RANK_LOST, RESTARTED
from complete_verifier.driver.seat import Seat

RunRank = Callable[[Seat], int]  # what a rank does; returns its exit code

_PORT = 29500
_MEET_S = 300.0  # other machines may start later
_PAUSE_S = 0.25
# Ranks are left so long to end by themselves: after an error, after rank 0 has its result, after a signal to them.
_AFTER_ERROR_S, _AFTER_RESULT_S, _AFTER_SIGNAL_S = 1.5, 3.0, 10.0
_OVERDUE_S = 30.0  # after the deadline, whatever a rank says
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Ranks of this machine among all."""

    nproc: int
    nnodes: int
    node: int
    host: str
    port: int | None  # None: any that is free

    @classmethod
    def of(cls, loaded: LoadedConfig) -> Layout | None:
        """What the command line asks for; None for one rank, which needs no launcher.

        Raises:
            ConfigError: flags that contradict each other, or no GPU.
        """
        options = loaded.options
        node = options.node_rank or 0
        if options.nproc is None:
            given = [name for name in ("node_rank", "master_addr", "master_port", "max_restarts")
                     if getattr(options, name) is not None]  # fmt: skip
            if options.nnodes > 1 or given:
                name = given[0] if given else "nnodes"
                raise ConfigError(f"--{name}: is for a command that starts ranks; add --nproc N")
            return None
        if Seat.of_environment() is not None:
            raise ConfigError(f"--nproc {options.nproc}: torchrun has started the ranks already; leave it out")
        if node >= options.nnodes:
            raise ConfigError(
                f"--node_rank {node}: expected 0 to {options.nnodes - 1}, as --nnodes {options.nnodes} says"
            )
        if options.nnodes > 1 and (options.node_rank is None or options.master_addr is None):
            raise ConfigError(f"--nnodes {options.nnodes}: needs --node_rank and --master_addr on every machine")
        nproc = _gpus() if options.nproc == "gpu" else int(options.nproc)
        port = options.master_port or (_PORT if options.nnodes > 1 else None)
        layout = cls(nproc, options.nnodes, node, options.master_addr or "127.0.0.1", port)
        return layout if layout.world_size > 1 else None

    @property
    def world_size(self) -> int:
        return self.nproc * self.nnodes

    def seat(self, local: int, port: int, attempt: int, most: int) -> Seat:
        return Seat(
            rank=self.node * self.nproc + local,
            world_size=self.world_size,
            local_rank=local,
            local_world_size=self.nproc,
            node_rank=self.node,
            host=self.host if self.nnodes > 1 else "127.0.0.1",
            port=port,
            attempt=attempt,
            most_attempts=most,
            launched=True,
        )


@dataclass(frozen=True, slots=True)
class Launched:
    """How all ranks have ended: the exit code, and the line of what went wrong, if something did."""

    code: int
    line: str | None


def launch(layout: Layout, run: RunRank, deadline: float, most: int = 0, quiet: bool = False) -> Launched:
    """Run all ranks of this machine to their end.

    Args:
        deadline: the monotonic time of it; ranks that are there long after it are killed.
        most: how often they are started anew after one was lost.
        quiet: the line is returned only, and not said; that of ranks is theirs to say or not.

    Raises:
        ConfigError: the port is taken, or the machines do not fit each other.
    """
    with _signals_kept():
        listening = _listen(layout) if layout.node == 0 else None
        port = listening.getsockname()[1] if listening is not None else int(layout.port or _PORT)
        board: Board | None = None
        for attempt in range(most + 1):
            seats = [layout.seat(local, port, attempt, most) for local in range(layout.nproc)]
            ranks = [_Child(seat, _fork(seat, run)) for seat in seats]
            try:
                if board is None:
                    board = _board(layout, listening, port)
                supervisor = _Supervisor(layout, ranks, board.at(seats[0].notes), deadline + _OVERDUE_S, quiet)
                code = supervisor.wait()
            finally:
                for child in ranks:
                    child.kill()
            again = attempt < most and code in RESTARTED and supervisor.signal is None
            if not again or time.monotonic() > deadline:
                break
            if layout.node == 0 and not quiet:
                _say(
                    f"ranks are started anew ({attempt + 1} of {most} times), from the last checkpoint if there is one"
                )
        line = supervisor.line()
        _leave(layout, board)
        return Launched(code, line)


@dataclass(slots=True)
class _Child:
    seat: Seat
    pid: int
    status: int | None = None  # exit code, or minus the number of a signal
    killed: bool = False  # by us

    def reap(self) -> bool:
        """Whether it has ended since it was asked last."""
        if self.status is not None:
            return False
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return False
        self.status = os.waitstatus_to_exitcode(status)
        return True

    def send(self, number: int) -> None:
        if self.status is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, with all that it started."""
        if self.status is not None:
            return
        self.killed = True
        for end in (os.killpg, os.kill):  # it may not lead a group yet
            try:
                end(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)


@dataclass(slots=True)
class _Supervisor:
    """One attempt: waits until all ranks of this machine have ended, and says why where no rank could."""

    layout: Layout
    ranks: list[_Child]
    notes: Board
    due: float
    quiet: bool
    kill_at: float = field(default=float("inf"))
    signal: int | None = None
    failed: int | None = None

    def line(self) -> str | None:
        """What was said, or is to be said, about what went wrong."""
        try:
            text = None if self.failed is None else self.notes.get("failed")
        except BoardLost:
            text = None
        return None if text is None else str(json.loads(text)[1])

    def wait(self) -> int:
        """Until all have ended; returns the exit code."""
        while any(child.status is None for child in self.ranks):
            came = signal.sigtimedwait(_SIGNALS, _PAUSE_S)
            if came is not None and came.si_signo != signal.SIGCHLD:
                self._pass_on(came.si_signo)
            try:
                self._take_ends()
                self._hear()
            except BoardLost:
                self._alone()
            if time.monotonic() > min(self.kill_at, self.due):
                self._kill_rest()
        return self._code()

    def _pass_on(self, number: int) -> None:
        again, self.signal = self.signal is not None, number
        for child in self.ranks:
            child.send(signal.SIGKILL if again else number)
        self.kill_at = min(self.kill_at, time.monotonic() + _AFTER_SIGNAL_S)

    def _take_ends(self) -> None:
        for child in self.ranks:
            if not child.reap() or child.status is None:
                continue
            if child.status == OK:
                if child.seat.rank == 0:
                    self._end_within(_AFTER_RESULT_S)
                continue
            if self.failed is None and self.signal is None and not self._has_result():
                self._failed(child, child.status)
            self._end_within(_AFTER_ERROR_S)

    def _failed(self, child: _Child, status: int) -> None:
        """One has ended without a result: it has said why itself, unless a signal ended it."""
        told = _read(self.notes, "failed")
        if told is None and self.notes.first("claim"):
            how = f"was ended by {_name(-status)}" if status < 0 else f"ended with code {status}"
            memory = " (out of memory?)" if -status == signal.SIGKILL else ""
            line = (
                f"rank {child.seat.rank} of {self.layout.world_size} {how}{memory}; its last step: {self._step(child)}"
            )
            line = f"{'warning' if child.seat.tried_again else 'error'}: {line}"
            self.failed = RANK_LOST
            self.notes.put("failed", json.dumps([self.failed, line]))
            self._say(line)

    def _step(self, child: _Child) -> str:
        text = self.notes.get(f"beat/{child.seat.rank}")
        return step_of(None if text is None else Beat(**json.loads(text)))

    def _hear(self) -> None:
        """What ranks and other machines have said."""
        if self.failed is None and not self._has_result():
            self.failed = _read(self.notes, "failed")
            if self.failed is not None:
                self._end_within(_AFTER_ERROR_S)
        if self.layout.node > 0 and self.notes.get("done") is not None:
            self._end_within(_AFTER_RESULT_S)

    def _alone(self) -> None:
        """Machine 0's launcher is gone, and the notes with it."""
        self.kill_at = 0.0
        if self.failed is None:
            self.failed = RANK_LOST
            self._say(f"error: machine 0 ({self.layout.host}) is gone, and rank 0 of {self.layout.world_size} with it")

    def _kill_rest(self) -> None:
        late = [child for child in self.ranks if child.status is None]
        if time.monotonic() > self.due and self.failed is None and not self._has_result():
            child = min(late, key=lambda one: one.seat.rank)
            who = f"rank {child.seat.rank} of {self.layout.world_size}"
            line = f"error: {who} did not end after the deadline; its last step: {self._step(child)}"
            self.failed = RANK_LOST
            self.notes.put("failed", json.dumps([self.failed, line]))
            self._say(line)
        for child in late:
            child.kill()

    def _say(self, line: str) -> None:
        if not self.quiet:
            _say(line)

    def _end_within(self, seconds: float) -> None:
        self.kill_at = min(self.kill_at, time.monotonic() + seconds)

    def _has_result(self) -> bool:
        """Whether rank 0 has written its result: what happens to the others afterwards is of no account."""
        first = self.ranks[0]
        return first.status == OK if first.seat.rank == 0 else self.notes.get("done") is not None

    def _code(self) -> int:
        if self._has_result():
            return OK
        if self.failed is not None:
            return self.failed
        if self.signal is not None:
            return INTERRUPTED if self.signal == signal.SIGINT else 128 + self.signal
        return max((abs(child.status or 0) for child in self.ranks), default=OK) and RANK_LOST


def _fork(seat: Seat, run: RunRank) -> int:
    """A rank in a process and a session of its own, which the system ends when this process ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a linear algebra library's idle threads, which it restarts by itself
        pid = os.fork()
    if pid:
        return pid
    code = INTERNAL
    try:
        _die_with(parent)
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        seat.take()
        code = run(seat)
    finally:  # whatever came, nothing of the launcher's runs on here
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die_with(parent: int) -> None:
    """The system ends this process when its parent ends (Linux; elsewhere the watch looks)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(RANK_LOST)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Within, signals wait until they are asked for, and the collector does not touch what forks share."""
    gc.freeze()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listen(layout: Layout) -> socket.socket:
    """The socket of the store, before there are ranks that look for it."""
    host = "0.0.0.0" if layout.nnodes > 1 else "127.0.0.1"
    try:
        return socket.create_server((host, layout.port or 0), backlog=1024)
    except OSError as error:
        raise ConfigError(f"--master_port {layout.port}: cannot be used ({error.strerror}); name a free one") from error


def _board(layout: Layout, listening: socket.socket | None, port: int) -> Board:
    """The notes of all machines; they must have as many ranks each.

    Raises:
        ConfigError: machine 0 is not there, or a machine starts another number of ranks.
    """
    if listening is not None:
        board = Board.served(listening, "abcrown/")
    else:
        try:
            board = Board.connected(layout.host, port, "abcrown/", _MEET_S)
        except BoardLost as error:
            raise ConfigError(
                f"--master_addr {layout.host}: machine 0 does not answer at port {port}; start it there too"
            ) from error
    if listening is not None:
        board.put("nproc", str(layout.nproc))
        return board
    theirs = board.get("nproc")
    if theirs is not None and int(theirs) != layout.nproc:
        raise ConfigError(f"--nproc {layout.nproc}: machine 0 starts {theirs} ranks; start as many on each")
    return board


def _leave(layout: Layout, board: Board | None) -> None:
    """Machine 0 goes last: the others still read what it keeps."""
    if board is None or layout.nnodes == 1:
        return
    end = time.monotonic() + _AFTER_RESULT_S + 2
    try:
        board.put(f"node/{layout.node}", "left")
        others = [f"node/{node}" for node in range(layout.nnodes) if node != layout.node]
        while layout.node == 0 and time.monotonic() < end and any(board.get(key) is None for key in others):
            time.sleep(_PAUSE_S)
    except BoardLost:
        return


def _gpus() -> int:
    """GPUs of this machine, counted in a process of its own: asking may start CUDA, which no fork survives.

    Raises:
        ConfigError: there is none.
    """
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        try:
            os.write(theirs, str(torch.cuda.device_count()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as file:
        count = int(file.read() or b"0")
    os.waitpid(pid, 0)
    if count == 0:
        raise ConfigError("--nproc gpu: no CUDA device is available here; give a number of ranks")
    return count


def _read(notes: Board, key: str) -> int | None:
    text = notes.get(key)
    return None if text is None else int(json.loads(text)[0])


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
