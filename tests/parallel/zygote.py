"""A process that has imported what ranks need and forks what a test run asks for: imports cost seconds, forks none.

    code, output = zygote_of(env).run(Job("tests.parallel.fork_ranks", plan, modules), timeout_s)

One for each environment and worker of a test run. It imports and never runs anything itself, so each job starts as
clean as in a process of its own: no thread, no CUDA, no process group is left of an earlier one. A job leads a session
of its own; at its time limit it dies with all that it started. The zygote dies with the test run.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_ANSWERS_S = 90.0  # a job is forked within this time: imports on a machine that many share


@dataclass(frozen=True)
class Job:
    """``module.main(Path(argument))``; ``modules``: what it needs, imported before it is forked and kept for others."""

    module: str
    argument: str
    modules: Sequence[str] = ()


class Zygote:
    """The test run's side."""

    def __init__(self, env: Mapping[str, str], folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.parallel.zygote"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(env), cwd=folder, start_new_session=True,
        )  # fmt: skip
        self._read = b""
        atexit.register(self.close)

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def run(self, job: Job, timeout_s: float) -> tuple[int | None, str]:
        """Do a job in a fork. Exit code (None: the time limit), and all that it printed."""
        with tempfile.NamedTemporaryFile(prefix="job-") as log:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({**asdict(job), "log": log.name}).encode() + b"\n")
            self._process.stdin.flush()
            code: int | None = None
            try:
                pid = self._answer(_ANSWERS_S)
                if pid is not None:
                    code = self._job(pid, timeout_s)
            finally:
                if code is None:
                    self.close()  # the next one begins with a new zygote
            return code, Path(log.name).read_text(errors="replace")

    def _job(self, pid: int, timeout_s: float) -> int | None:
        code = None
        try:
            code = self._answer(timeout_s)
        finally:
            if code is None:
                _kill_tree(pid)
        return code

    def _answer(self, seconds: float) -> int | None:
        """The next number that it says; None if it does not in time, or is gone."""
        end, stream = time.monotonic() + seconds, self._process.stdout
        assert stream is not None
        while b"\n" not in self._read:
            ready, _, _ = select.select([stream], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(stream.fileno(), 4096) if ready else b""
            if not piece:
                return None
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return int(line)

    def close(self) -> None:
        """End it, and a job that is running."""
        atexit.unregister(self.close)
        if self.alive:
            _kill_tree(self._process.pid)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@cache
def _zygote(env: tuple[tuple[str, str], ...], folder: Path) -> Zygote:
    return Zygote(dict(env), folder)


def zygote_of(env: Mapping[str, str], folder: Path) -> Zygote:
    """The zygote of this environment; another one if the last has had to be killed."""
    key = tuple(sorted((name, value) for name, value in env.items() if name != "PYTEST_CURRENT_TEST"))
    found = _zygote(key, folder)
    if not found.alive:
        _zygote.cache_clear()
        found = _zygote(key, folder)
    return found


def _kill_tree(root: int) -> None:
    from tests.parallel.launching import descendants

    for pid in {root, *descendants(root)}:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


# -- the process itself -----------------------------------------------------------------------------------------------
def serve() -> None:
    """Read jobs, one a line, and fork each; say its process number, then its exit code."""
    _die_with_parent()
    answers = os.dup(1)
    os.dup2(2, 1)  # what modules say when they are imported is no answer
    for line in sys.stdin.buffer:
        job = json.loads(line)
        pid = _forked(Job(job["module"], job["argument"], job["modules"]), job["log"], answers)
        os.write(answers, b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))


def _forked(job: Job, log: str, answers: int) -> int:
    for name in (job.module, *job.modules):
        try:
            importlib.import_module(name)
        except ImportError:
            traceback.print_exc()  # the job fails by it, too
    gc.collect()
    gc.freeze()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        _die_with_parent()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        os.close(answers)
        importlib.import_module(job.module).main(Path(job.argument))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 (a child must never return into the parent's code)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    importlib.import_module("tests.parallel.zygote").serve()
