"""Runs the tasks of the scaling study: resumable, within a budget, one after the other or side by side on other GPUs.

Every job's ranks are forked (`forking`), on GPUs and on a CPU alike, and write its figures into a file of their own.
When it has come to its end they are taken over with what only the runner knows: experiment, machine, and
``shared_host``: whether another job ran on the host meanwhile (memory and bits don't mind, times do). A job that fails
leaves no figures.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.parallel.scaled import forking
from benchmarks.parallel.scaled.kinds import Task
from benchmarks.parallel.starting import Figures, read

LEAST_S = 10.0  # a job is not begun with less time left
GRACE_S = 5.0  # of the other ranks, when one has failed
TAIL = 3000


@dataclass
class _Running:
    """A job that has begun: a process for each of its ranks."""

    task: Task
    part: Path
    gpus: tuple[int, ...]
    ranks: list[forking.Rank]
    began: float
    ends: float
    shared: bool = False

    def over(self) -> bool:
        """All ranks have ended, or the time is; after one has failed the others have some seconds."""
        codes = [rank.poll() for rank in self.ranks]
        if None not in codes:
            return True
        if any(codes):
            self.ends = min(self.ends, time.monotonic() + GRACE_S)
        return time.monotonic() > self.ends


@dataclass
class Runner:
    """See `run`. ``gpus`` 0: on the CPU, one job after the other. ``wrong``: what went wrong, a line or more each."""

    out: Path
    gpus: int
    budget_s: float
    exclusive: bool = True
    wrong: list[str] = field(default_factory=list)

    def run(self, tasks: Sequence[Task]) -> None:
        """Run what the file of figures does not have yet, in this order.

        The first task that the free GPUs can take is begun; exclusive: only when nothing runs.
        """
        self.out.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.budget_s
        done = {one["done"] for one in read(self.out) if "done" in one}
        missing = [task for task in tasks if _key(task) not in done]
        waiting, running = [task for task in missing if not self._too_large(task)], list[_Running]()
        self.wrong += [f"more ranks than GPUs: {_key(task)}" for task in missing if self._too_large(task)]
        forking.load(task.job.script for task in waiting)
        try:
            while waiting or running:
                for one in [one for one in running if one.over()]:
                    running.remove(one)
                    self._reap(one)
                if waiting and deadline - time.monotonic() < LEAST_S:
                    self.wrong += [f"not begun: {_key(task)}" for task in waiting]
                    waiting = []
                fitting = self._fitting(waiting, running)
                if fitting is None:
                    time.sleep(0.02)
                    continue
                waiting.remove(fitting)
                running.append(self._begin(fitting, tuple(self._free(running)[: fitting.world]), deadline))
                for one in running:
                    one.shared |= len(running) > 1
        finally:
            for one in running:
                forking.end(one.ranks)

    def _too_large(self, task: Task) -> bool:
        return 0 < self.gpus < task.world

    def _free(self, running: Sequence[_Running]) -> list[int]:
        taken = {gpu for one in running for gpu in one.gpus}
        return [gpu for gpu in range(self.gpus) if gpu not in taken]

    def _fitting(self, waiting: Sequence[Task], running: Sequence[_Running]) -> Task | None:
        if running and (self.exclusive or not self.gpus):
            return None
        free = len(self._free(running))
        return next((task for task in waiting if not self.gpus or task.world <= free), None)

    def _begin(self, task: Task, gpus: tuple[int, ...], deadline: float) -> _Running:
        part, now, job = self._part(task), time.monotonic(), task.job
        names = _names(self.gpus)
        shown = ",".join(names[gpu] for gpu in gpus)
        place = {"CUDA_VISIBLE_DEVICES": shown} if gpus else {}
        ends = min(deadline, now + job.timeout_s)
        running = _Running(task, part, gpus, [], now, ends)
        words, log = (*job.arguments, "--out", str(part)), _log(part)
        try:
            for environment in forking.environments(job.ranks):
                running.ranks.append(forking.begin(job.script, words, {**place, **environment}, log))
        except OSError:
            forking.end(running.ranks)
            raise
        print(f"-- on {shown or 'the CPU'}: {_key(task)}", flush=True)
        return running

    def _reap(self, one: _Running) -> None:
        codes = [rank.code for rank in one.ranks]
        code = next((code for code in codes if code), None if None in codes else 0)
        forking.end(one.ranks)
        log = _log(one.part)
        said = log.read_text(errors="replace") if log.exists() else ""
        log.unlink(missing_ok=True)
        lines = [line for line in said.splitlines() if not line.startswith("{")]
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


def _log(part: Path) -> Path:
    return part.with_suffix(".log")
