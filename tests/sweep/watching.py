"""Looking at processes from outside, through /proc."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

if not Path("/proc/self/stat").exists():
    pytest.skip("no /proc here", allow_module_level=True)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    fields = _stat(pid)
    return fields is None or fields[0] == "Z"


def children_of(pid: int) -> list[int]:
    """The processes that it started, the oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None and int(fields[1]) == pid:
            found.append((int(fields[19]), int(entry.name)))
    return [number for _, number in sorted(found)]


def servers_of(pid: int) -> list[int]:
    """The processes that a sweep forks its instances from."""
    return [child for child in children_of(pid) if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()]


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _stat(pid: int) -> list[str] | None:
    """State, parent, ... of a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
