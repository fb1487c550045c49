"""What is done before an instance's clock starts: leftovers of earlier runs are ended, awkward networks simplified."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

# Runs of the harness carry this variable with the path of their checkout, and hand it down to all their processes.
MARK = "ABCROWN_HARNESS"
# Set for runs that must not touch other processes and need no warm-up.
TRIAL = "ABCROWN_TEST_RUN"
SIMPLIFIED = frozenset({"cgan", "cgan_2023"})
_PROC = Path("/proc")


def main(arguments: Sequence[str]) -> int:
    """``CATEGORY ONNX ROOT``: prepare one network for the checkout ROOT. Nothing here can fail an instance."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    category, network, root = arguments
    if os.environ.get(TRIAL) != "1":
        for pid in end_leftovers(Path(root)):
            logger.info("process %d of an earlier run was ended", pid)
    if category in SIMPLIFIED:
        logger.info("%s: %s", network, simplify(Path(network)))
    return 0


def end_leftovers(root: Path) -> list[int]:
    """Kill what earlier runs of the harness in the checkout ``root`` left behind; returns what was killed.

    Upstream kills every python process of the machine. Here a process has to be this user's, carry the harness's mark
    for this checkout, and be no ancestor of this process: other programs and other checkouts are left alone.
    """
    ended = []
    for pid in leftovers(root):
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
        ended.append(pid)
    return ended


def leftovers(root: Path) -> list[int]:
    """Processes that runs of the harness in ``root`` started, this one and its ancestors left out. Linux only."""
    if not _PROC.is_dir():
        return []
    mark = f"{MARK}={root}".encode()
    spared = set(_ancestors())
    pids = sorted(int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())
    return [pid for pid in pids if pid not in spared and mark in _environment(pid)]


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # it ended meanwhile, or is another user's
        return []


def _ancestors() -> Iterator[int]:
    """This process, its parent, and so on."""
    pid = os.getpid()
    while pid > 0:
        yield pid
        try:
            status = (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return
        pid = int(status.rpartition(")")[2].split()[1])  # the second field may hold anything, in parentheses


def simplify(network: Path) -> str:
    """Fold constants of an ONNX file in place, the file as it was kept as ``NAME.onnx.original``; says what was done.

    The work is done by another process, so that whatever goes wrong there, a crash of a library included, leaves the
    file as it is.
    """
    kept, draft = network.with_name(f"{network.name}.original"), network.with_name(f"{network.name}.simplified")
    if kept.exists():
        return f"was simplified before ({kept.name} is there)"
    command = [sys.executable, "-m", "complete_verifier.vnncomp.simplify", str(network), str(draft)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not draft.exists():
        draft.unlink(missing_ok=True)
        return f"left as it is ({(done.stderr.strip().splitlines() or ['no reason given'])[-1]})"
    shutil.copy2(network, kept)
    os.replace(draft, network)
    return f"simplified; as it was: {kept.name}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
