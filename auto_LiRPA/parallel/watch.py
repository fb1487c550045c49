"""Which rank do the others wait for? A thread in each rank that notes where its rank is, and looks when nothing moves.

Collectives of a backend end with an error, at a timeout or never when a rank is missing, and none says which one it is.
So each rank leaves a *beat* on the board about once a second: how many collectives of which group it has entered, what
it does, whether its process lives. A rank that has entered more collectives of a group than another one waits for that
one (or will): if this lasts too long, the beats say who is missing and where it was last. Nothing here asks the
backend or the device, so it works while the main thread is blocked in either.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from types import FrameType
from typing import Protocol

from auto_LiRPA.parallel.board import Board, BoardLost

BEAT_S = 1.0
STALE_S = 8.0  # without a beat for so long, a process is held to be gone or stopped
GRACE_S = 10.0  # after the deadline no collective waits longer than this
_MEET_S = 60.0  # ranks start up to so long after each other: they import
_SAY_FIRST_S = 3.0
_LEAST_S = 0.1  # between two beats
_BOARD_TRIES = 3
_OWN = ("auto_LiRPA", "complete_verifier")


@dataclass(frozen=True, slots=True)
class Beat:
    """One sign of life. ``counts``: collectives entered, by group (its ranks, as text)."""

    number: int
    pid: int
    host: str
    machine: str  # equal where process numbers mean the same
    step: str
    place: str
    waits_in: str
    patient: bool
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Missing:
    """A rank that the others wait for. ``sure``: its process is gone."""

    rank: int
    why: str
    beat: Beat | None
    sure: bool = False

    def line(self, world_size: int) -> str:
        """Who, what happened, and where it was last."""
        where = f" on {self.beat.host}" if self.beat is not None and self.beat.host != _host() else ""
        return f"rank {self.rank} of {world_size}{where} {self.why}; its last step: {step_of(self.beat)}"


def step_of(beat: Beat | None) -> str:
    """What a rank did last, for people."""
    if beat is None:
        return "none (it has not said a word)"
    step = f"waiting in {beat.waits_in}, {beat.step}" if beat.waits_in else beat.step
    return f"{step} ({beat.place})" if beat.place else step


class Owner(Protocol):
    """Who a watch tells; called from the watch's thread."""

    def beat(self) -> float:
        """About once a second. Returns after how many seconds at most the next call is wanted."""

    def signalled(self, numbers: bytes) -> None:
        """Signals have arrived; the main thread may be unable to take them."""

    def missing(self, found: Missing) -> None:
        """The others have waited too long for this rank, or its process is gone."""

    def board_lost(self) -> None:
        """Nobody keeps the notes any more."""


class Watch:
    """The observer of this rank's collectives, and the thread that looks after them."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        board: Board,
        owner: Owner,
        timeout_s: float,
        seconds_left: Callable[[], float],
        wake_fd: int | None = None,
    ) -> None:
        """``seconds_left``: until the deadline. ``wake_fd``: readable when a signal has arrived."""
        self.rank, self.world_size, self.board = rank, world_size, board
        self._owner, self._timeout_s, self._seconds_left, self._wake_fd = owner, timeout_s, seconds_left, wake_fd
        self._main = threading.main_thread().ident
        self._step, self._patient = "starting", False
        self._inside: str | None = None
        self._counts: dict[tuple[int, ...], int] = {}
        self._moves = 0
        self._number = 0
        self._peers: dict[int, _Peer] = {}
        self._stop = threading.Event()
        self._nudged, self._nudge = os.pipe()
        self._nudging = False
        self._beaten = 0.0
        self._thread: threading.Thread | None = None

    # -- what the rank does: called from its own threads, cheap -------------------------------------------------------
    def entering(self, kind: str, members: tuple[int, ...]) -> None:
        self._counts[members] = self._counts.get(members, 0) + 1
        self._inside = kind

    def left(self) -> None:
        self._inside = None

    def at(self, step: str, patient: bool = False) -> None:
        self._step, self._patient = step, patient
        self._moves += 1
        if not self._nudging:
            self._nudging = True
            os.write(self._nudge, b"s")  # the others are to know at once: the next thing may be the end

    @property
    def step(self) -> str:
        """What this rank does, as it was said last."""
        return self._step

    # -- the thread -----------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Begin to beat and to look."""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a beat that is on its way is waited for."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2 * BEAT_S)

    def _run(self) -> None:
        tries, moved, quiet = 0, -1, 0
        while not self._stop.is_set():
            pause = BEAT_S
            try:
                pause = min(pause, self._owner.beat())
                self._put_beat()
                moves = self._moves + sum(self._counts.values())
                quiet, moved = (quiet + 1 if moves == moved else 0), moves
                if quiet >= 1:
                    found = self.look()
                    if found is not None:
                        self._owner.missing(found)
                tries = 0
            except BoardLost:
                tries += 1
                if tries >= _BOARD_TRIES:
                    self._owner.board_lost()
            self._sleep(max(pause, 0.02))

    def _sleep(self, seconds: float) -> None:
        signals = [] if self._wake_fd is None else [self._wake_fd]
        for ready in select.select([self._nudged, *signals], [], [], seconds)[0]:
            came = os.read(ready, 4096)
            if ready == self._wake_fd:
                self._owner.signalled(came)
            elif (early := self._beaten + _LEAST_S - time.monotonic()) > 0:
                select.select(signals, [], [], early)  # steps may follow each other fast

    def _put_beat(self) -> None:
        self._number, self._nudging, self._beaten = self._number + 1, False, time.monotonic()
        counts = {_name(members): count for members, count in list(self._counts.items())}
        beat = Beat(
            self._number,
            os.getpid(),
            _host(),
            _machine(),
            self._step,
            self._place(),
            self._inside or "",
            self._patient,
            counts,
        )
        self.board.put(f"beat/{self.rank}", json.dumps(asdict(beat)))

    def _place(self) -> str:
        """File and line of our own code that the main thread is in: known without any cost to it."""
        frame: FrameType | None = sys._current_frames().get(self._main or 0)
        while frame is not None:
            module = frame.f_globals.get("__name__", "")
            if module.split(".")[0] in _OWN and not module.startswith("auto_LiRPA.parallel"):
                return f"{module.replace('.', '/')}.py:{frame.f_lineno}"
            frame = frame.f_back
        return ""

    # -- looking --------------------------------------------------------------------------------------------------
    def beat_of(self, rank: int) -> Beat | None:
        """A rank's last beat."""
        text = self.board.get(f"beat/{rank}")
        return None if text is None else Beat(**json.loads(text))

    def look(self) -> Missing | None:
        """The rank that is waited for too long, or whose process is gone; None if there is none (yet)."""
        late: list[Missing] = []
        for rank in range(self.world_size):
            if rank == self.rank:
                continue
            found = self._judge(rank)
            if found is not None and found.sure:
                return found
            if found is not None:
                late.append(found)
        # the one that has come least far holds up the others; one that waits itself is not to blame
        return min(late, key=self._blame, default=None)

    def gone(self) -> Missing | None:
        """The rank whose process is gone, as far as this can be told at once."""
        for rank in range(self.world_size):
            beat = None if rank == self.rank else self.beat_of(rank)
            if beat is not None and self._has_died(rank, beat):
                return Missing(rank, "is gone", beat, sure=True)
        return None

    def _has_died(self, rank: int, beat: Beat) -> bool:
        return beat.machine == _machine() and not _alive(beat.pid) and self.board.get(f"left/{rank}") is None

    def _judge(self, rank: int) -> Missing | None:
        now, beat = time.monotonic(), self.beat_of(rank)
        peer = self._peers.setdefault(rank, _Peer(now))
        peer.see(beat, now)
        if beat is not None and self._has_died(rank, beat):
            return Missing(rank, "is gone", beat, sure=True)
        lag = self._lag(rank, beat)
        if lag is None:
            peer.lag = None
            return None
        group, theirs = lag
        if peer.lag != (group, theirs):  # it comes on, if slowly
            peer.lag, peer.lag_since = (group, theirs), now
        silent, waited = now - peer.changed, now - peer.lag_since
        stale = silent > STALE_S
        limit = self._limit(beat)
        if beat is not None and beat.waits_in and not stale:
            limit += _SAY_FIRST_S  # it waits itself, and is about to say for whom
        patient = beat is not None and beat.patient and not stale
        if (waited <= limit or patient) and self._seconds_left() > -GRACE_S:
            return None
        if beat is None:
            return Missing(rank, f"has not arrived after {waited:.0f} s", None)
        if stale:
            return Missing(rank, f"has given no sign of life for {silent:.0f} s", beat)
        ended = self.board.get(f"left/{rank}")
        if ended is not None:
            return Missing(rank, f"has ended ({ended}) though it is waited for", beat)
        kind = self._inside or "the next collective"
        return Missing(rank, f"has not come to {kind}, where rank {self.rank} waits, for {waited:.0f} s", beat)

    def _limit(self, beat: Beat | None) -> float:
        """Ranks that have not been met yet may still be importing."""
        started = beat is not None and bool(beat.counts)
        return self._timeout_s if started else max(self._timeout_s, _MEET_S)

    def _lag(self, rank: int, beat: Beat | None) -> tuple[str, int] | None:
        """The group in which a rank has entered fewer collectives than this one, and how many it has."""
        for members, mine in list(self._counts.items()):
            if rank in members:
                theirs = 0 if beat is None else beat.counts.get(_name(members), 0)
                if theirs < mine:
                    return _name(members), theirs
        return None

    def _blame(self, found: Missing) -> tuple[bool, int]:
        beat = found.beat
        return (beat is not None and bool(beat.waits_in), 0 if beat is None else sum(beat.counts.values()))


@dataclass(slots=True)
class _Peer:
    """What this rank has seen of another one, by its own clock."""

    changed: float
    number: int = -1
    lag: tuple[str, int] | None = None
    lag_since: float = 0.0

    def see(self, beat: Beat | None, now: float) -> None:
        number = -1 if beat is None else beat.number
        if number != self.number:
            self.number, self.changed = number, now


def _name(members: tuple[int, ...]) -> str:
    return ",".join(map(str, members)) if len(members) <= 8 else f"{members[0]}..{members[-1]}/{hash(members)}"


def _alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that is dead and not yet waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return not os.path.isdir("/proc/self")


def _host() -> str:
    return socket.gethostname()


@cache
def _machine() -> str:
    """The machine and, within it, the namespace of process numbers (a container has its own)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return _host()
