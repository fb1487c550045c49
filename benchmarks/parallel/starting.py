"""Starts measurements one after the other, each in processes of its own, within a time budget; what is done is kept."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
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
    script = [str(HERE / job.script), *job.arguments, "--out", str(out)]
    head = [sys.executable]
    if job.ranks > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        head += ["-m", "torch.distributed.run", f"--nproc_per_node={job.ranks}", f"--master_port={port}"]
    process = subprocess.Popen(
        [*head, *script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    code: int | None = None
    try:
        text, _ = process.communicate(timeout=timeout_s)
        code = process.returncode
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # torchrun ends its ranks, which are in sessions of their own
        try:
            text, _ = process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
    figures = [line for line in text.splitlines() if line.startswith("{")]
    print("\n".join(figures), flush=True)
    return code, "\n".join(line for line in text.splitlines() if not line.startswith("{"))[-3000:]


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
