"""Starts measurements one after the other, each in processes of its own, within a time budget; what is done is kept."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

HERE = Path(__file__).resolve().parent
AFTER_ERROR_S = 5.0
Figures = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One script on so many ranks. ``key``: under what its being done is noted."""

    script: str
    ranks: int
    arguments: tuple[str, ...]
    timeout_s: float = 120.0

    @property
    def key(self) -> str:
        return f"{self.script} {self.ranks} {' '.join(self.arguments)}"

    def command(self, out: Path) -> list[str]:
        """What a rank runs. The figures' file is named before a `--`, behind which words go on to another command."""
        at = self.arguments.index("--") if "--" in self.arguments else len(self.arguments)
        words = (*self.arguments[:at], "--out", str(out), *self.arguments[at:])
        return [sys.executable, str(HERE / self.script), *words]


def run_jobs(jobs: Sequence[Job], out: Path, budget_s: float) -> list[str]:
    """Run what ``out`` does not have yet; lines for the figures are the scripts' business. Returns what went wrong."""
    deadline = time.monotonic() + budget_s
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {one["done"] for one in read(out) if "done" in one}
    wrong = []
    for job in jobs:
        left = deadline - time.monotonic()
        if job.key in done:
            continue
        if left < 5:
            wrong.append(f"not begun: {job.key}")
            continue
        print(f"-- {job.key}", flush=True)
        began = time.monotonic()
        code, tail = _run(job, out, min(left, job.timeout_s))
        seconds = round(time.monotonic() - began, 1)
        if code == 0:
            with open(out, "a", encoding="utf-8") as file:
                file.write(json.dumps({"done": job.key, "seconds": seconds}) + "\n")
        else:
            wrong.append(f"{'timed out' if code is None else f'exit code {code}'} after {seconds} s: {job.key}\n{tail}")
            print(wrong[-1], flush=True)
    return wrong


def _run(job: Job, out: Path, timeout_s: float) -> tuple[int | None, str]:
    """Exit code (None: the time limit) and the last lines that are no figures."""
    command = job.command(out)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        ranks = [_begin(command, environment, log) for environment in _environments(job.ranks)]
        try:
            code = _wait(ranks, timeout_s)
        finally:
            _end(ranks)
        log.seek(0)
        lines = log.read().splitlines()
    print("\n".join(line for line in lines if line.startswith("{")), flush=True)
    return code, "\n".join(line for line in lines if not line.startswith("{"))[-3000:]


def _environments(ranks: int) -> list[dict[str, str]]:
    """What torchrun would tell each rank, without its own imports and watching."""
    if ranks == 1:
        return [{}]
    common = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _begin(command: Sequence[str], environment: dict[str, str], log: TextIO) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )


def _wait(ranks: Sequence[subprocess.Popen[str]], timeout_s: float) -> int | None:
    """Until all have ended, or one has failed (the others get some seconds to say why), or the time is over."""
    deadline = time.monotonic() + timeout_s
    codes = [rank.poll() for rank in ranks]
    while None in codes and time.monotonic() < deadline:
        if any(codes):
            deadline = min(deadline, time.monotonic() + AFTER_ERROR_S)
        time.sleep(0.02)
        codes = [rank.poll() for rank in ranks]
    failed = [code for code in codes if code]
    return failed[0] if failed else None if None in codes else 0


def _end(ranks: Sequence[subprocess.Popen[str]]) -> None:
    """End what is still there, with all that it has started (each rank leads a session)."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.killpg(rank.pid, number)
        if all(rank.poll() is not None for rank in ranks):
            continue
        for rank in ranks:
            with suppress(subprocess.TimeoutExpired):
                rank.wait(15)


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def gpus() -> int:
    """How many this machine has."""
    import torch

    return torch.cuda.device_count()


def read(out: Path) -> list[Figures]:
    """All lines of a file of figures."""
    if not out.exists():
        return []
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("{")]


def rows(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    shown = [[("" if cell is None else str(cell)) for cell in line] for line in (header, *lines)]
    body = ["| " + " | ".join(line) + " |" for line in shown]
    return "\n".join([body[0], "|" + "---|" * len(header), *body[1:]])
