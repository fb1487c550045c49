"""How one rank of several ends: so that the command says one line, ends with one code, and leaves nothing behind.

Every end is a note on the board. What went wrong is told once: by the rank whose own error it is; a rank whose
collective broke off waits for that line, and tells who is missing where none comes. The thread of the watch ends the
process where the main thread cannot: blocked in a collective or on a device, it takes no signal and no exception.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from auto_LiRPA.errors import RankUnreachable, VerifierError
from auto_LiRPA.parallel.board import Board, BoardLost
from auto_LiRPA.parallel.shortage import comes_from_shortage
from auto_LiRPA.parallel.watch import BEAT_S, GRACE_S, Missing, Watch
from complete_verifier.driver.boundary import INTERNAL, INTERRUPTED, OK, RANK_LOST, RESTARTED
from complete_verifier.driver.interrupts import ALARM_DELAY, DeadlinePassed, Interruption, Terminated
from complete_verifier.driver.seat import Seat
from complete_verifier.outcome import Verdict

# What a main thread that is blocked is given beyond the alarm (or SIGTERM), before the watch's thread acts for it.
RESORT_DELAY_S, TERM_DELAY_S = 0.7, 2.0
_OTHERS_LATER_S = 1.0  # other ranks go after rank 0
_HEAR_S = 3.0  # for what the other ranks have to say about an error
_EXPLAIN_S = 5.0  # for the reason of a collective that broke off
_POLL_S = 0.05
_CONNECT_S = 10.0
_FOREVER = float("inf")

LastWords = Callable[[Verdict, str], None]


class Rank:
    """This process as one of several."""

    def __init__(self, seat: Seat, started: float, quiet: bool = False) -> None:
        """``started``: the monotonic time that its deadline counts from. ``quiet``: the launcher says what is wrong."""
        self.seat, self._started, self._quiet = seat, started, quiet
        self.watch: Watch | None = None
        self._board: Board | None = None
        self._deadline = _FOREVER
        self._timeout_s = _FOREVER
        self._resort_at = _FOREVER
        self._last_words: LastWords | None = None
        self._turn = threading.Lock()  # whoever holds it ends the process: the main thread, or the watch's
        self._mine = False
        self._signal: int | None = None
        self._done_since: float | None = None
        self._parent = os.getppid()

    # -- the run ----------------------------------------------------------------------------------------------------
    def begin(self, collective_timeout_s: float, timeout_s: float) -> None:
        """Meet the board and watch from here on, until so many seconds after the start.

        Raises:
            RankUnreachable: nobody keeps the board.
        """
        self._timeout_s, self._deadline = timeout_s, self._started + timeout_s
        self._resort_at = self._deadline + ALARM_DELAY + RESORT_DELAY_S + self._later
        wake = None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_term)  # while nothing better is installed
            wake, end = os.pipe()
            os.set_blocking(end, False)
            signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        seat = self.seat
        self.watch = Watch(
            seat.rank, seat.world_size, self._connected(), self, collective_timeout_s, self.seconds_left, wake
        )
        self.watch.start()

    def seconds_left(self) -> float:
        """Until the deadline."""
        return self._deadline - time.monotonic()

    @property
    def cut_short(self) -> bool:
        """Whether a signal or the deadline ends the run: ranks may be anywhere then, and nothing is asked of them."""
        return self._signal is not None or self.seconds_left() <= 0

    @property
    def speaks(self) -> bool:
        """Whether this rank prints and writes."""
        return self.seat.rank == 0

    def prepared(self, last_words: LastWords) -> None:
        """From now on ``last_words`` writes a result where the main thread cannot: a verdict, and what stopped it."""
        self._last_words = last_words

    def take_turn(self) -> None:
        """The main thread is about to write the result. Does not return if the watch's thread has begun to."""
        if not self._mine:
            if not self._turn.acquire(blocking=False):
                _wait_for_the_end()
            self._mine = True

    def excuse(self) -> Interruption | None:
        """Why a collective broke off, if it did because other ranks were cut short by the clock or SIGTERM first."""
        end = time.monotonic() + _HEAR_S
        while time.monotonic() < end:
            reasons = self._reasons()
            if self._signal == signal.SIGTERM or "terminated" in reasons:
                return None if self._lost() else Terminated()
            if self.seconds_left() <= 0 or "deadline" in reasons:
                return DeadlinePassed()
            if self._told() is not None or self._lost() is not None:
                return None
            time.sleep(_POLL_S)
        return None

    def check_complete(self) -> None:
        """After SIGTERM: `torchrun` sends it to the others when a rank is lost, which is no end with a result.

        Raises:
            RankUnreachable: one is lost.
        """
        if self._lost() is not None or self._told() is not None:
            raise RankUnreachable("another rank was lost")

    # -- the end, by the main thread ----------------------------------------------------------------------------------
    def end(self, code: int, message: str | None, error: BaseException | None) -> int:
        """Tell the others how this rank ends, and the user if it falls to this rank. Returns the exit code."""
        self.take_turn()
        try:
            if code == OK or message is None:
                return self._ended_well(code)
            return self._ended_badly(code, message, error)
        except (BoardLost, RankUnreachable):
            heard = not isinstance(error, BoardLost)  # else the launcher is gone, and who started it with it
            if message is not None and heard and (self.speaks or not isinstance(error, RankUnreachable)):
                _say(message)
            return code

    def _ended_well(self, code: int) -> int:
        board = self._connected()
        reason = "terminated" if self._signal else "deadline" if self.seconds_left() <= 0 else "done"
        board.put(f"left/{self.seat.rank}", reason)
        if self.speaks:
            board.put("done", reason)
        return code

    def _ended_badly(self, code: int, message: str, error: BaseException | None) -> int:
        board = self._connected()
        if isinstance(error, RankUnreachable):
            return self._explained(code, message, error)
        if code == INTERRUPTED:
            return self._tell(code, message)
        if error is not None and comes_from_shortage(error):
            code = RANK_LOST
            if not isinstance(error, VerifierError):
                words = str(error).splitlines()[0] if str(error) else "on the host"
                message = f"error: out of memory: {words}; lower parallel.tile_rows or solver.batch_size"
        board.put(f"error/{self.seat.rank}", json.dumps([code, message]))
        errors = self._heard()
        common = len(errors) == self.seat.world_size and len(set(errors.values())) == 1
        if not common:
            message = self._named(message, code, error)
        if errors and min(errors) < self.seat.rank:
            told = self._told_within(_HEAR_S)
            if told is not None:
                return told
        return self._tell(code, message)

    def _heard(self) -> dict[int, str]:
        """Errors of all ranks, as soon as every one has one, waits for others or has left."""
        end, first = time.monotonic() + _HEAR_S, dict[int, int]()
        while True:
            board, errors, busy = self._connected(), dict[int, str](), 0
            for rank in range(self.seat.world_size):
                text = board.get(f"error/{rank}")
                if text is not None:
                    errors[rank] = text
                    continue
                beat = None if self.watch is None else self.watch.beat_of(rank)
                # a beat that was on its way may be of a collective that both have come back from
                since = 0 if beat is None else beat.number - first.setdefault(rank, beat.number)
                waits = beat is not None and bool(beat.waits_in) and since >= 2
                busy += not waits and board.get(f"left/{rank}") is None
            if not busy or time.monotonic() > end or self._told() is not None:
                return errors
            time.sleep(_POLL_S)

    def _explained(self, code: int, message: str, error: RankUnreachable) -> int:
        """The end of a rank whose collective broke off: the reason is another one's."""
        end = time.monotonic() + _EXPLAIN_S
        say_at = time.monotonic() + (_EXPLAIN_S / 2 if self.seat.launched else 0.3)  # the launcher knows better
        while time.monotonic() < end:
            told = self._told()
            if told is not None:
                return told
            if self._signal == signal.SIGINT:
                return INTERRUPTED
            lost = self._lost()
            if lost is not None and time.monotonic() > say_at:
                return self._tell(RANK_LOST, f"error: {lost.line(self.seat.world_size)}")
            time.sleep(_POLL_S)
        return self._tell(code, self._named(message, code, error))

    def _named(self, message: str, code: int, error: BaseException | None) -> str:
        """The line with this rank's number, and where it was."""
        kind, colon, text = message.partition(": ")
        who = f"rank {self.seat.rank} of {self.seat.world_size}"
        step = "starting" if self.watch is None else self.watch.step
        place = _place(error) if code in (INTERNAL, RANK_LOST) else ""
        return f"{kind}{colon or ': '}{who}: {text}; its last step: {step}{f' ({place})' if place else ''}"

    # -- the board ----------------------------------------------------------------------------------------------------
    def _connected(self) -> Board:
        if self._board is None:
            if not self.seat.kept and self.watch is None and self._deadline == _FOREVER:
                raise RankUnreachable("no launcher keeps a store")  # an early error without one: each speaks for itself
            try:
                self._board = Board.connected(self.seat.host, self.seat.port, self.seat.notes, _CONNECT_S)
            except BoardLost as error:
                raise RankUnreachable(f"the ranks' meeting point is not there: {error}") from error
        return self._board

    def _told(self) -> int | None:
        """The code that the command ends with, if some rank or the launcher has said why."""
        text = self._connected().get("failed")
        return None if text is None else int(json.loads(text)[0])

    def _told_within(self, seconds: float) -> int | None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            code = self._told()
            if code is not None:
                return code
            time.sleep(_POLL_S)
        return None

    def _tell(self, code: int, message: str) -> int:
        """Say the line, unless one has been said; returns the code that the command ends with."""
        board = self._connected()
        if board.first("claim"):
            if not self._quiet:
                _say(message if code not in RESTARTED or not self.seat.tried_again else _as_warning(message))
            board.put("failed", json.dumps([code, message]))
            return code
        told = self._told_within(_HEAR_S)
        return code if told is None else told

    def _lost(self) -> Missing | None:
        return None if self.watch is None else self.watch.gone()

    def _reasons(self) -> set[str]:
        board = self._connected()
        return {board.get(f"left/{rank}") or "" for rank in range(self.seat.world_size)}

    # -- the watch's thread -------------------------------------------------------------------------------------------
    def beat(self) -> float:
        """Look at what concerns the whole process; returns the seconds until something is due."""
        if self._turn.locked():
            return BEAT_S
        if os.getppid() != self._parent:
            self._leave(RANK_LOST)
        now, told = time.monotonic(), self._told()
        if told is not None:
            self._leave(told)
        if not self.speaks and self._board is not None and self._board.get("done") is not None:
            self._done_since = self._done_since or now
            if now > self._done_since + _OTHERS_LATER_S:
                self._leave(OK)
        if now >= self._resort_at:
            self._resort()
        return max(0.0, self._resort_at - now)

    def signalled(self, numbers: bytes) -> None:
        """SIGTERM and Ctrl-C: a main thread that is blocked does not take them."""
        for number in (signal.SIGTERM, signal.SIGINT):
            if number in numbers and self._signal is None:
                self._signal = number
                self._resort_at = min(self._resort_at, time.monotonic() + TERM_DELAY_S + self._later)

    def missing(self, found: Missing) -> None:
        """End this rank because of another one."""
        if -GRACE_S < self.seconds_left() <= 0:
            return  # the deadline has passed: the result is written without it
        if self.seat.launched and found.sure:
            time.sleep(2 * BEAT_S)  # the launcher knows how it ended
        if self._turn.acquire(blocking=False):
            _exit(self._told() or self._tell(RANK_LOST, f"error: {found.line(self.seat.world_size)}"))

    def board_lost(self) -> None:
        """Whoever keeps the board is gone, and with it those that look after this process."""
        if self._turn.acquire(blocking=False):
            seat = self.seat
            keeper = "the launcher of the first machine" if seat.kept else "rank 0"
            if not seat.launched or seat.node_rank > 0:
                _say(f"error: rank {seat.rank} of {seat.world_size}: {keeper} ({seat.host}:{seat.port}) is gone")
            _exit(RANK_LOST)

    @property
    def _later(self) -> float:
        return 0.0 if self.seat.rank == 0 else _OTHERS_LATER_S

    def _leave(self, code: int) -> None:
        """End quietly: what there is to say has been said."""
        if self._turn.acquire(blocking=False):
            _exit(code)

    def _resort(self) -> None:
        """The main thread has not come back in time: write what is known, and end."""
        if self._last_words is None and self.speaks:
            self._resort_at += BEAT_S
            return
        if not self._turn.acquire(blocking=False):
            return
        code = RANK_LOST
        try:
            code = self._last_code()
        except BoardLost:
            code = OK if self.speaks else RANK_LOST  # the result is written
        except OSError as error:
            _say(f"error: the result cannot be written: {error}")
        finally:
            _exit(code)

    def _last_code(self) -> int:
        lost = self._lost() if self._signal == signal.SIGTERM else None
        if lost is not None:
            return self._tell(RANK_LOST, f"error: {lost.line(self.seat.world_size)}")
        if self._signal == signal.SIGINT:
            return self._tell(INTERRUPTED, "interrupted")
        if self._last_words is not None and self.speaks:
            if self._signal is None:
                self._last_words(Verdict.TIMEOUT, f"time limit {self._timeout_s:g} s")
            else:
                self._last_words(Verdict.UNKNOWN, "terminated by SIGTERM")
        return self._ended_well(OK)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or number


def _place(error: BaseException | None) -> str:
    """The innermost line of our own code that an error, or else what was raised from it, has come through."""
    if error is None:
        return ""
    place, trace = _place(error.__cause__), error.__traceback__
    if place:
        return place
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.split(".")[0] in ("auto_LiRPA", "complete_verifier") and not module.startswith("auto_LiRPA.parallel"):
            place = f"{module.replace('.', '/')}.py:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _as_warning(message: str) -> str:
    return f"warning: {message.partition(': ')[2]}"


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _exit(code: int) -> NoReturn:
    """End the process at once, whatever its other threads are blocked in."""
    sys.stdout.flush()
    os._exit(code)


def _wait_for_the_end() -> NoReturn:
    while True:
        time.sleep(1)
