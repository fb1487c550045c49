"""When this process started: the deadline of a run counts from there, imports included."""

from __future__ import annotations

import os
import time

# What the interpreter takes before the first line of ours runs, where the system does not tell.
_INTERPRETER_SECONDS = 0.1
# A process that became this program late (`exec` in a long-lived shell) is older than its work.
_LONGEST_START = 20.0
# `torchrun` imports and meets its like on other machines before it starts us.
_LONGEST_LAUNCH = 120.0


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


def command_start(entered: float) -> float:
    """The monotonic time at which the command started: this process, or the `torchrun` that started it.

    Ranks that are started anew go on with the time that the first ones had. A parent that is much older is not taken
    for the command: somebody's session that starts ranks from Python.
    """
    own = process_start(entered)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return own
    now, parent = time.monotonic(), _age(str(os.getppid()))
    anew = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if parent is None or (not anew and parent > now - own + _LONGEST_LAUNCH):
        return own
    return min(own, now - parent)


def _age(process: str = "self") -> float | None:
    """Seconds since a process was made; None if the system does not say."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            # the second field is the command in parentheses, which may hold anything
            fields = file.read().rpartition(")")[2].split()
        ticks = int(fields[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return None
