"""What the sweep and the process that forks its instances say to each other, pickled, over a socket of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# One message is one packet; reports, which can be long, take each instance's own pipe.
LONGEST = 1 << 17

Send = Callable[[object], None]
# What a forked process runs: the value that all of them share, its own task, and a way to say something.
Target = Callable[[object, object, Send], None]


@dataclass(frozen=True, slots=True)
class Start:
    """Fork a process for this task; the write end of its pipe and its log come with the packet."""

    task: object


@dataclass(frozen=True, slots=True)
class Reap:
    """Wait for the end of a process that is about to end."""

    pid: int


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything is imported."""


@dataclass(frozen=True, slots=True)
class Started:
    """The process runs."""

    pid: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The process is gone: its exit code, or minus the number of the signal that ended it, and its largest memory."""

    exit_code: int
    peak_mib: float
