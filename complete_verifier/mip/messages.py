"""What the run and its solver processes say to each other: programs, tasks and answers, as framed NumPy archives.

Imports nothing but NumPy: a solver process must start quickly, without the tensor library.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_LENGTH = struct.Struct("<Q")


class Kind(IntEnum):
    """What a message to a solver process is."""

    PROGRAM = 0
    TASK = 1


class Ending(IntEnum):
    """How a solve ended."""

    OPTIMAL = 0
    INFEASIBLE = 1
    LIMIT = 2  # of time; the bound so far is given
    FAILED = 3  # the solver gave up, or its process died


@dataclass(frozen=True, slots=True)
class Task:
    """Minimise ``cost . v`` over the program that the process holds, with more rows, for at most ``seconds``.

    ``rows`` ``[k, n]``, ``rows v <= limits``. ``lower``/``upper`` ``[n]`` are the columns' bounds. ``exact``: with the
    integers; else the linear relaxation, bounded by weak duality.
    """

    number: int
    cost: Floats
    rows: Floats
    limits: Floats
    lower: Floats
    upper: Floats
    exact: bool
    seconds: float
    gap: float = 1e-4


@dataclass(frozen=True, slots=True)
class Answer:
    """``bound``: no feasible value is below it (-inf if none is known). ``point``: the best one found, or empty."""

    number: int
    ending: Ending
    bound: float
    value: float
    point: Floats
    seconds: float


def send(stream: IO[bytes], arrays: Mapping[str, Any]) -> None:
    """One message. A broken pipe is the caller's to handle."""
    buffer = io.BytesIO()
    named: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
    np.savez(buffer, **named)
    content = buffer.getvalue()
    stream.write(_LENGTH.pack(len(content)) + content)
    stream.flush()


def receive(stream: IO[bytes]) -> dict[str, Any] | None:
    """The next message; None where the stream has ended."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    content = stream.read(length)
    if len(content) < length:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return dict(archive)
