"""One instance of the competition as one command line of the tool, run under a watchdog."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from complete_verifier.vnncomp.categories import config_for

# Reading and converting files in advance may take so long, whatever the instance's own limit.
PREPARE_LIMIT_S = 300.0
# The tool ends itself by then. If it does not (a library call that never returns), it is killed: still less than
# 2 s late, and what it wrote is kept.
_GRACE_S = 1.5
_TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class Task:
    """One instance, and how it is to be run (the arguments of vnncomp_main.py)."""

    category: str
    network: Path
    specification: Path
    results: Path
    timeout_s: float
    debug: bool = False
    prepare: bool = False
    no_pgd: bool = False
    try_crown: bool = False


def tool_command(task: Task, root: Path) -> list[str]:
    """The command line of the tool in the checkout ``root``; paths are absolute, so it runs in any folder.

    Raises:
        UnknownCategoryError: no configuration belongs to the category.
    """
    config = config_for(task.category, task.network, task.specification)
    command = [
        sys.executable, str(root / "complete_verifier" / "abcrown.py"),
        "--config", str(root / "exp_configs" / config),
        "--precompile_jit",
        "--onnx_path", str(task.network.absolute()),
        "--vnnlib_path", str(task.specification.absolute()),
        "--results_file", str(task.results.absolute()),
        "--timeout", f"{task.timeout_s:g}",
        "--save_adv_example",
    ]  # fmt: skip
    if task.try_crown:
        command += ["--bound_prop_method", "crown", "--apply_output_constraints_to"]
    if task.debug:
        command += ["--eval_adv_example"]
    if task.no_pgd:
        command += ["--pgd_order=skip"]
    if task.prepare:
        command += ["--prepare_only"]
    return command


def run_task(task: Task, root: Path, started: float) -> int:
    """Run the tool on an instance and return the exit code of vnncomp_main.py: 0, or the tool's as `exit_code` says.

    Args:
        started: monotonic time from which the limit counts. A tool that is still there some time after the limit is
            killed; a results file that it left empty then says timeout.
    """
    command = tool_command(task, root)
    limit = PREPARE_LIMIT_S if task.prepare else task.timeout_s + _GRACE_S
    # The counterexample's own file goes to the current folder: one that can be written and that no other run uses.
    with tempfile.TemporaryDirectory(prefix="abcrown_") as folder:
        child = subprocess.Popen(command, cwd=folder)
        with _forwarded(signal.SIGTERM, child):
            try:
                code = child.wait(max(0.0, limit - (time.monotonic() - started)))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                code = 0
                if not task.prepare and is_blank(task.results):
                    task.results.write_text(_TIMEOUT, encoding="utf-8")
    return exit_code(code)


def exit_code(code: int) -> int:
    """What a run's end is reported as: 0 for a verdict, otherwise a number from 1 to 255, also after a signal."""
    return 0 if code == 0 else code % 255 + 1


def is_blank(results: Path) -> bool:
    """Whether no verdict stands in the results file."""
    try:
        return not results.read_text(encoding="utf-8").partition("\n")[0].strip()
    except FileNotFoundError:
        return True


@contextmanager
def _forwarded(number: signal.Signals, child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Within: the signal goes to the child, which writes what it knows and ends; then so does this process."""

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = signal.signal(number, forward)
    try:
        yield
    finally:
        signal.signal(number, before)
