"""When this process started: the deadline of a run counts from there, imports included."""

from __future__ import annotations

import os
import time

# What the interpreter takes before the first line of ours runs, where the system does not tell.
_INTERPRETER_SECONDS = 0.1
# A process that became this program late (`exec` in a long-lived shell) is older than its work.
_LONGEST_START = 20.0


def process_start(entered: float) -> float:
    """The monotonic time at which this process started.

    Linux says it in /proc/self/stat (field 22, clock ticks since boot, to 10 ms). Where that is missing or cannot be,
    it is ``entered``, the monotonic time of the first line of our code, less what an interpreter takes to get there.
    """
    now = time.monotonic()
    age = _age()
    since_entry = now - entered
    if age is None or not since_entry <= age <= since_entry + _LONGEST_START:
        return entered - _INTERPRETER_SECONDS
    return now - age


def _age() -> float | None:
    """Seconds since the process was made; None if the system does not say."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            # the second field is the command in parentheses, which may hold anything
            fields = file.read().rpartition(")")[2].split()
        ticks = int(fields[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return None
