"""Commands with several ranks for tests, forked from one process that imports the program once.

    found = run_commands([Command(("--nproc", "2", ...), Act(after="stage bab", rank=1, signal=SIGKILL)), ...])

A command is what a user types, or one such line per rank as `torchrun` would start them (`ranks`): then this module
plays the agent, that is it keeps the store, sends SIGTERM to the other ranks as soon as one fails, and ends with 1.
`main` is the process that forks; it adopts whatever a command leaves behind, so orphans are seen.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.parallel.faults import Fault, plant

PRELOAD = ("onnx", "complete_verifier.driver.cli", "complete_verifier.driver.instance",
           "complete_verifier.driver.launch", "complete_verifier.driver.rank")  # fmt: skip
_ORPHANS_S = 3.0  # processes whose launcher was killed may take so long to end
LATEST_S = 60.0  # a command that takes longer is killed
_PR_SET_CHILD_SUBREAPER, _CLONE_NEWNET = 36, 0x40000000


@dataclass(frozen=True)
class Act:
    """Something that happens to a command: a signal, once a line of standard output matches ``after``."""

    after: str
    signal: int
    rank: int | None = None  # None: the command itself
    wait_s: float = 0.2


@dataclass(frozen=True)
class Command:
    """``words`` of one command; or with ``ranks``, those of each rank under the agent."""

    words: tuple[str, ...] = ()
    acts: tuple[Act, ...] = ()
    fault: Fault | None = None
    ranks: tuple[tuple[str, ...], ...] = ()
    restarts: int = 0  # of the agent
    network: str | None = None  # the network namespace that it runs in: another machine, as far as it can tell
    env: tuple[tuple[str, str], ...] = ()
    folder: str | None = None  # its working directory


@dataclass
class Ended:
    """``code``: exit code, or minus a signal; None where it had to be killed. ``left``: processes of it still there."""

    code: int | None
    out: str
    err: str
    seconds: float
    since_act: float
    left: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)  # of ranks under the agent

    @property
    def lines(self) -> list[str]:
        """Standard error, without what torch's C++ libraries say of a store that is gone."""
        theirs = ("[W", "[E", "[rank", "Exception raised from ", "frame #", "<omitting ")
        return [line for line in self.err.splitlines() if line.strip() and not line.startswith(theirs)]


def run_commands(commands: Sequence[Command], side_by_side: int = 2, limit_s: float = 300.0) -> list[Ended]:
    """Run them all, so many at a time."""
    from tests.parallel.launching import run_job
    from tests.parallel.zygote import Job

    with tempfile.TemporaryDirectory(prefix="commands-") as name:
        plan = Path(name, "plan")
        plan.write_bytes(pickle.dumps((list(commands), side_by_side)))
        run_job(Job("tests.parallel.commands", str(plan), PRELOAD), limit_s)
        found: list[Ended] = pickle.loads(Path(name, "ended").read_bytes())
        return found


# -- the process that forks -------------------------------------------------------------------------------------------
@dataclass
class _Running:
    number: int
    command: Command
    pid: int
    folder: Path
    began: float
    acts: list[Act]
    due: list[tuple[float, Act]] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    ranks: list[int] = field(default_factory=list)
    acted: float = 0.0


def main(plan: Path) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    commands, slots = pickle.loads(plan.read_bytes())
    from complete_verifier.driver.start_up import paused_collection

    with paused_collection():
        for name in PRELOAD:
            importlib.import_module(name)
    waiting, running, ended = list(enumerate(commands)), list[_Running](), dict[int, Ended]()
    while waiting or running:
        while waiting and len(running) < slots:
            running.append(_start(*waiting.pop(0), plan.parent))
        time.sleep(0.02)
        for one in list(running):
            _watch(one)
            code = _ended(one)
            if code is not None or time.monotonic() > one.began + LATEST_S:
                running.remove(one)
                ended[one.number] = _finish(one, code)
        _adopt({one.pid for one in running})
    (plan.parent / "ended").write_bytes(pickle.dumps([ended[number] for number in range(len(commands))]))


def _start(number: int, command: Command, base: Path) -> _Running:
    folder = base / str(number)
    folder.mkdir()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            for name, stream in (("out", 1), ("err", 2)):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), stream)
            os.environ.update(command.env)
            if command.folder is not None:
                os.chdir(command.folder)
            if command.network is not None:
                _move_to(command.network)
            if command.fault is not None:
                plant(command.fault)
            code = _agent(command, folder) if command.ranks else _command(command.words)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return _Running(number, command, pid, folder, time.monotonic(), list(command.acts))


def _move_to(network: str) -> None:
    place = os.open(f"/run/netns/{network}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(place, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _command(words: Sequence[str]) -> int:
    from complete_verifier.__main__ import main as run

    return run(words)


def _watch(one: _Running) -> None:
    """Note its processes, and do what is due."""
    children = _children(one.pid)
    if not one.ranks or len(children) >= len(one.ranks):
        one.ranks = children
    one.seen.update(children)
    text = (one.folder / "out").read_text(errors="replace") if one.acts and (one.folder / "out").exists() else ""
    for act in list(one.acts):
        if re.search(act.after, text, re.MULTILINE):
            one.acts.remove(act)
            one.due.append((time.monotonic() + act.wait_s, act))
    for when, act in list(one.due):
        if time.monotonic() >= when:
            one.due.remove((when, act))
            one.acted = time.monotonic()
            os.kill(one.pid if act.rank is None else one.ranks[act.rank], act.signal)


def _ended(one: _Running) -> int | None:
    pid, status = os.waitpid(one.pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _finish(one: _Running, code: int | None) -> Ended:
    now = time.monotonic()
    if code is None:
        os.killpg(one.pid, signal.SIGKILL)
        os.waitpid(one.pid, 0)
    left = [pid for pid in one.seen if _alive(pid)]
    while left and time.monotonic() < now + _ORPHANS_S:
        time.sleep(0.05)
        left = [pid for pid in left if _alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    out, err = ((one.folder / name).read_text(errors="replace") for name in ("out", "err"))
    codes = one.folder / "codes"
    return Ended(
        code, out, err, now - one.began, now - one.acted if one.acted else 0.0, left,
        pickle.loads(codes.read_bytes()) if codes.exists() else [],
    )  # fmt: skip


def _adopt(known: set[int]) -> None:
    """Wait for what was left to this process, so that it is gone when it has ended."""
    for pid in set(_children(os.getpid())) - known:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue


def _children(parent: int) -> list[int]:
    try:
        found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return []
    return sorted(int(pid) for pid in found)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# -- in place of torchrun ---------------------------------------------------------------------------------------------
def _agent(command: Command, folder: Path) -> int:
    """Ranks as `torchrun` has them, started anew as often as asked; 0, or 1 if one failed in the end."""
    from datetime import timedelta

    from torch._C._distributed_c10d import TCPStore

    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    store = None
    for attempt in range(command.restarts + 1):
        pids = [_rank(command, rank, port, attempt) for rank in range(len(command.ranks))]
        if store is None:
            store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False,
                                  timeout=timedelta(seconds=60), master_listen_fd=listening.detach())  # fmt: skip
        codes = _codes(pids, stopped)
        (folder / "codes").write_bytes(pickle.dumps([codes[pid] for pid in pids]))
        if not any(codes.values()):
            return 0
    return 1


def _codes(pids: Sequence[int], stopped: list[int]) -> dict[int, int]:
    codes: dict[int, int] = {}
    told = False
    while len(codes) < len(pids):
        time.sleep(0.1)
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        if not told and (stopped or any(codes.values())):
            told = True
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGTERM)
    return codes


def _rank(command: Command, rank: int, port: int, attempt: int) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        size = str(len(command.ranks))
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size, GROUP_RANK="0",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True",
            TORCHELASTIC_RESTART_COUNT=str(attempt), TORCHELASTIC_MAX_RESTARTS=str(command.restarts),
        )  # fmt: skip
        code = _command(command.ranks[rank])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

