"""Runs the tasks of the scaling study: resumable, within a budget, one after the other or side by side on other GPUs.

Every job writes its figures into a file of its own. When it has come to its end they are taken over with what only the
runner knows: experiment, machine, and ``shared_host``: whether another job ran on the host meanwhile (memory and bits
don't mind, times do). A job that fails leaves no figures.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.parallel.scaled.forking import run_forked
from benchmarks.parallel.scaled.kinds import Task
from benchmarks.parallel.starting import HERE, Figures, free_port, read

LEAST_S = 10.0  # a job is not begun with less time left
GRACE_S = 10.0  # of the other ranks, when one has failed
TAIL = 3000


@dataclass
class _Running:
    """A job that has begun: a process for each of its ranks."""

    task: Task
    part: Path
    gpus: tuple[int, ...]
    ranks: list[subprocess.Popen[str]]
    began: float
    ends: float
    shared: bool = False

    def over(self) -> bool:
        """All ranks have ended, or the time is; after one has failed the others have some seconds."""
        if all(rank.poll() is not None for rank in self.ranks):
            return True
        if any(rank.returncode for rank in self.ranks):
            self.ends = min(self.ends, time.monotonic() + GRACE_S)
        return time.monotonic() > self.ends


@dataclass
class Runner:
    """See `run`. ``gpus`` 0: ranks are forked on the CPU. ``wrong``: what went wrong, a line or more each."""

    out: Path
    gpus: int
    budget_s: float
    exclusive: bool = True
    wrong: list[str] = field(default_factory=list)

    def run(self, tasks: Sequence[Task]) -> None:
        """Run what the file of figures does not have yet, in this order."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.budget_s
        done = {one["done"] for one in read(self.out) if "done" in one}
        missing = [task for task in tasks if _key(task) not in done]
        if self.gpus:
            self._on_gpus(missing, deadline)
        else:
            self._forked(missing, deadline)

    def _forked(self, tasks: Sequence[Task], deadline: float) -> None:
        for task in tasks:
            left = deadline - time.monotonic()
            if left < LEAST_S:
                self.wrong.append(f"not begun: {_key(task)}")
                continue
            part, began, job = self._part(task), time.monotonic(), task.job
            arguments = (*job.arguments, "--out", str(part))
            code, tail = run_forked(job.script, job.ranks, arguments, min(left, job.timeout_s))
            self._ended(task, part, code, tail, time.monotonic() - began, shared=False)

    def _on_gpus(self, tasks: Sequence[Task], deadline: float) -> None:
        """The first task that the free GPUs can take is begun; exclusive: only when nothing runs."""
        waiting, running = [task for task in tasks if task.world <= self.gpus], list[_Running]()
        self.wrong += [f"more ranks than GPUs: {_key(task)}" for task in tasks if task.world > self.gpus]
        try:
            while waiting or running:
                for one in [one for one in running if one.over()]:
                    running.remove(one)
                    self._reap(one)
                if waiting and deadline - time.monotonic() < LEAST_S:
                    self.wrong += [f"not begun: {_key(task)}" for task in waiting]
                    waiting = []
                taken = {gpu for one in running for gpu in one.gpus}
                free = [gpu for gpu in range(self.gpus) if gpu not in taken]
                fitting = next((task for task in waiting if task.world <= len(free)), None)
                if fitting is None or (self.exclusive and running):
                    time.sleep(0.05)
                    continue
                waiting.remove(fitting)
                running.append(self._begin(fitting, tuple(free[: fitting.world]), deadline))
                for one in running:
                    one.shared |= len(running) > 1
        finally:
            for one in running:
                _end(one.ranks)

    def _begin(self, task: Task, gpus: tuple[int, ...], deadline: float) -> _Running:
        part, now, shown = self._part(task), time.monotonic(), ",".join(_names(self.gpus)[gpu] for gpu in gpus)
        command = [sys.executable, str(HERE / task.job.script), *task.job.arguments, "--out", str(part)]
        with open(part.with_suffix(".log"), "w", encoding="utf-8") as log:
            ranks = [
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                    env={**os.environ, "CUDA_VISIBLE_DEVICES": shown, **environment},
                )
                for environment in _environments(task.job.ranks)
            ]
        print(f"-- on {shown}: {_key(task)}", flush=True)
        return _Running(task, part, gpus, ranks, now, min(deadline, now + task.job.timeout_s))

    def _reap(self, one: _Running) -> None:
        failed = [rank.returncode for rank in one.ranks if rank.returncode]
        code = failed[0] if failed else None if any(rank.returncode is None for rank in one.ranks) else 0
        _end(one.ranks)
        log = one.part.with_suffix(".log")
        lines = [line for line in log.read_text(errors="replace").splitlines() if not line.startswith("{")]
        log.unlink()
        self._ended(one.task, one.part, code, "\n".join(lines)[-TAIL:], time.monotonic() - one.began, one.shared)

    def _ended(self, task: Task, part: Path, code: int | None, tail: str, seconds: float, shared: bool) -> None:
        figures, seconds, key = read(part), round(seconds, 1), _key(task)
        part.unlink(missing_ok=True)
        if code != 0:
            what = "timed out" if code is None else f"exit code {code}"
            self.wrong.append(f"{what} after {seconds} s: {key}\n{tail}")
            print(self.wrong[-1], flush=True)
            return
        known: Figures = {
            "exp": task.exp,
            "host": platform.node(),
            "host_gpus": self.gpus,
            "host_cores": os.cpu_count() or 1,
            "shared_host": shared,
            "job": key,
        }
        lines = [json.dumps({**one, **known}) for one in figures]
        lines.append(json.dumps({"done": key, "seconds": seconds}))
        with open(self.out, "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        print(f"   {seconds:6.1f} s, {len(figures)} figures: {key}", flush=True)

    def _part(self, task: Task) -> Path:
        """A file for the figures of this job alone, empty."""
        path = self.out.with_name(f".{self.out.stem}-{os.getpid()}-{abs(hash(_key(task))) % 10**8}.jsonl")
        path.unlink(missing_ok=True)
        return path


def _key(task: Task) -> str:
    return f"exp {task.exp}, P={task.world}: {task.job.key}"


def _names(gpus: int) -> list[str]:
    """As CUDA_VISIBLE_DEVICES has them, if it is set."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return given.split(",") if given else [str(gpu) for gpu in range(gpus)]


def _environments(ranks: int) -> list[dict[str, str]]:
    """What torchrun would tell each rank, without its own imports and watching."""
    if ranks == 1:
        return [{}]
    common = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _end(ranks: Sequence[subprocess.Popen[str]]) -> None:
    """End what is still there, with all that it has started (each rank leads a session)."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.killpg(rank.pid, number)
        for rank in ranks:
            with suppress(subprocess.TimeoutExpired):
                rank.wait(10)


