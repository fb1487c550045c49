"""Where exceptions end: one line on standard error and an exit code, a traceback only on request."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from types import TracebackType

from auto_LiRPA.errors import UserError, WorkerFailed

OK, INTERNAL, BAD_INPUT, RANK_LOST = 0, 1, 2, 3
RESTARTED = (INTERNAL, RANK_LOST)  # ends after which ranks may be started anew
INTERRUPTED = 130  # Ctrl-C, as shells have it


class Boundary:
    """A context that no exception leaves, but those that end the process on purpose. ``code`` says what came."""

    def __init__(self, debug: bool, tell: Callable[[str], None] | None = None) -> None:
        self.code = OK
        self.message: str | None = None
        self.error: BaseException | None = None
        self._debug = debug
        self._tell = tell or _to_stderr

    def __enter__(self) -> Boundary:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        if error is None:
            return False
        if isinstance(error, SystemExit):  # argparse after --help
            self.code = error.code if isinstance(error.code, int) else OK
            return True
        if isinstance(error, KeyboardInterrupt):
            self._end(INTERRUPTED, "interrupted")
            return True
        if not isinstance(error, Exception):
            return False
        if self._debug:
            traceback.print_exception(error)
        if isinstance(error, UserError):
            self._end(BAD_INPUT, f"error: {_one_line(error)}")
        elif isinstance(error, WorkerFailed):
            self._end(RANK_LOST, f"error: {_one_line(error)}")
        else:
            hint = "" if self._debug else " (--debug shows where; please report it)"
            self._end(INTERNAL, f"internal error: {type(error).__name__}: {_one_line(error)}{hint}")
        return True

    def _end(self, code: int, message: str) -> None:
        self.code, self.message = code, message
        self._tell(message)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _to_stderr(message: str) -> None:
    sys.stderr.write(f"{message}\n")
