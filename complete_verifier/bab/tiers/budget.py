"""How many bytes of open sub-problems each kind of memory may hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

# Shares of what is free when the search begins; the rest is for the rounds themselves and for other processes.
DEVICE_SHARE = 0.5
HOST_SHARE = 0.4
_ASSUMED_BYTES = 4 * 2**30  # where the system does not tell what is free
_MEMORY_FILE = Path("/proc/meminfo")
_GROUP_FILES = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


@dataclass(frozen=True, slots=True)
class StoreBudget:
    """Bytes of payload in device memory and in (pinned) host memory; what does not fit goes to files in ``folder``.

    On a CPU the "device" is the host's memory as well. ``folder`` None: the system's folder for temporary files.
    Budgets decide where a sub-problem lies, never which one is taken next.
    """

    device_bytes: int
    host_bytes: int
    folder: Path | None = None

    @classmethod
    def of(cls, device: torch.device, folder: Path | None = None) -> StoreBudget:
        """A share of the memory that is free now."""
        host = int(HOST_SHARE * free_host_bytes())
        if device.type != "cuda":
            return cls(host, 0, folder)
        free, _ = torch.cuda.mem_get_info(device)
        # what torch's allocator has reserved and does not use is free to the search as well
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return cls(int(DEVICE_SHARE * (free + idle)), host, folder)


def free_host_bytes() -> int:
    """Memory of this machine, or of this process's group, that could still be taken."""
    free = [_available(), *(_group_room(limit, used) for limit, used in _GROUP_FILES)]
    known = [number for number in free if number is not None]
    return min(known, default=_ASSUMED_BYTES)


def _available() -> int | None:
    try:
        for line in _MEMORY_FILE.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    names = os.sysconf_names
    if "SC_AVPHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _group_room(limit: Path, used: Path) -> int | None:
    """What a control group still allows; None where there is no such group or no limit."""
    try:
        return max(0, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # "max" is no number
        return None
