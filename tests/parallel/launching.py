"""Start the ranks of a test: P gloo processes that run one function, with hard time limits and nothing left behind.

    results = run_ranks(2, "tests.parallel.workers:bounds", case)           # one per rank, or AssertionError with logs
    found = launch([Launch(p, "tests.parallel.workers:bounds", case) for p in (1, 2, 3)])   # one import for all

The function takes the (pickled) case and returns anything that `torch.save` takes; the environment is torchrun's, so
it calls `DistributedContext.from_env`. Several contexts with different settings may be made in one process.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from tests.parallel.zygote import Job, zygote_of
from tests.support import ROOT

T = TypeVar("T")
IMPORT_S = 90.0  # on top of the time limits: imports on a machine that many share


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, kw_only=True)
class _Options:
    timeout_s: float = 60.0  # from the fork of the ranks on
    grace_s: float | None = 2.0  # after a rank has failed the others are killed; None: only at the time limit
    env: Mapping[str, str] = field(default_factory=dict)  # more environment of the ranks
    port: int = field(default_factory=free_port)


@dataclass(frozen=True)
class Launch(_Options):
    """``size`` ranks that run ``function`` ("module:name") on ``case``."""

    size: int
    function: str
    case: Any = None


@dataclass(frozen=True)
class Outcome:
    """What became of a launch. ``codes``: negative for a signal, None for a rank that had to be killed."""

    results: list[Any]  # None where a rank returned none
    codes: list[int | None]
    logs: list[str]  # stdout and stderr; of ranks that had to be killed also every thread's stack
    late: bool
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every rank came back by itself without an error."""
        return not self.late and all(code == 0 for code in self.codes)

    def told(self, lines: int = 40) -> str:
        """Exit codes and the last lines of every rank."""
        head = f"exit codes {self.codes}{', time limit reached' if self.late else ''}"
        tails = (f"--- rank {r}\n" + "\n".join(log.splitlines()[-lines:]) for r, log in enumerate(self.logs))
        return "\n".join((head, *tails))

    def checked(self) -> list[Any]:
        """The results; fails the test with every rank's log if a rank failed."""
        assert self.ok, self.told()
        return self.results


def run_ranks(
    size: int,
    function: str,
    case: Any = None,
    *,
    timeout_s: float = 60.0,
    env: Mapping[str, str] | None = None,
    parent_env: Mapping[str, str | None] | None = None,
) -> list[Any]:
    """Results of all ranks in order."""
    return launch([Launch(size, function, case, timeout_s=timeout_s, env=env or {})], parent_env)[0].checked()


def launch(launches: Sequence[Launch], parent_env: Mapping[str, str | None] | None = None) -> list[Outcome]:
    """Run launches one after the other, all forked from one process that has imported their modules (`zygote`).

    Args:
        parent_env: changes to the environment that torch is imported in; None removes a variable.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folders = [Path(name, str(i)) for i in range(len(launches))]
        for folder in folders:
            folder.mkdir()
        plan = Path(name, "plan")
        plan.write_bytes(pickle.dumps(list(zip(launches, folders, strict=True))))
        limit = IMPORT_S + sum(one.timeout_s + 1 for one in launches)
        modules = sorted({one.function.partition(":")[0] for one in launches})
        run_job(Job("tests.parallel.fork_ranks", str(plan), modules), limit, parent_env)
        return [_outcome(one, folder) for one, folder in zip(launches, folders, strict=True)]


def _outcome(one: Launch, folder: Path) -> Outcome:
    codes, late, seconds = pickle.loads((folder / "codes").read_bytes())
    logs = [(folder / f"rank{rank}.log").read_text(errors="replace") for rank in range(one.size)]
    results = [_load(folder / f"rank{rank}.pt") for rank in range(one.size)]
    return Outcome(results, codes, logs, late, seconds)


def _load(path: Path) -> Any:
    return torch.load(path, weights_only=False) if path.exists() else None


@dataclass(frozen=True)
class Finished:
    """A command that has ended. ``code`` None: the time limit; then all that it had started was killed."""

    code: int | None
    output: str  # stdout and stderr together
    seconds: float


def run_tree(
    command: Sequence[str],
    timeout_s: float,
    env: Mapping[str, str | None] | None = None,
    cwd: Path = ROOT,
) -> Finished:
    """Run a command in a session of its own; at the time limit, or if the test is interrupted, its whole tree dies.

    For torchrun and `abcrown --nproc` too, whose workers leave the process group.
    """
    merged = _merged(env)
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=merged, cwd=cwd, start_new_session=True
        )
        code: int | None = None
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _kill({process.pid, *descendants(process.pid)}, process)
        output.seek(0)
        return Finished(code, output.read().decode(errors="replace"), time.monotonic() - began)


def run_job(job: Job, timeout_s: float, env: Mapping[str, str | None] | None = None) -> None:
    """Have a job done that must not fail."""
    code, output = zygote_of(_merged(env), ROOT).run(job, timeout_s)
    assert code == 0, f"{job.module} ended with {code}:\n{output[-4000:]}"


def _merged(env: Mapping[str, str | None] | None) -> dict[str, str]:
    """This environment with changes; None removes a variable."""
    merged = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    for key, value in (env or {}).items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def torchrun(
    size: int, arguments: Iterable[str], timeout_s: float, env: Mapping[str, str | None] | None = None
) -> Finished:
    """A script under plain torchrun; ``OMP_NUM_THREADS`` is left to it."""
    head = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={size}", f"--master_port={free_port()}"]
    return run_tree([*head, *arguments], timeout_s, {"OMP_NUM_THREADS": None, **(env or {})})


def descendants(root: int) -> set[int]:
    """Processes that ``root`` started, and those that they started, by /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it has just ended
    found: set[int] = set()
    new = {root}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return found


def _kill(pids: set[int], process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    process.wait()


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[], T]) -> T:
    """``make()``, computed once for all workers of a test run (pytest-xdist spreads the tests of a module)."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with open(folder / f"{name}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = folder / f"{name}.pt"
        if not kept.exists():
            half = kept.with_suffix(".half")
            torch.save(make(), half)
            half.rename(kept)
    found: T = torch.load(kept, weights_only=False)
    return found
