"""Where a run's lines and progress go: plain lines, or a live view where standard output is a terminal."""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from complete_verifier.events import BoundsFound, Event, SearchProgressed, StageStarted
from complete_verifier.reporting.lines import lines_of

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

Write = Callable[[str], None]

# Seconds between two lines of a search: at first often, then less and less.
_LEAST_SECONDS = 1.0
_SHARE_OF_ELAPSED = 0.05
_REFRESH_PER_SECOND = 4.0


class Display(ABC):
    """Takes lines and events. A context: whatever it draws is put away on the way out."""

    @abstractmethod
    def line(self, text: str) -> None:
        """Print one line."""

    def result(self, text: str) -> None:
        """Print one line of the result, which is said even where nothing else is."""
        self.line(text)

    def event(self, event: Event) -> None:
        """Take note of an event, and print what is to be said about it."""
        for text in lines_of(event):
            self.line(text)

    @abstractmethod
    def begin(self, name: str, started: float, timeout_s: float) -> None:
        """An instance starts; its clock began at the monotonic time ``started``."""

    def overall(self, done: str, running: str) -> None:
        """How far a list is, and what runs where several instances do. Shown by a live view only."""
        return None

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Quiet(Display):
    """Says the result only (--quiet)."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def line(self, text: str) -> None:
        return None

    def result(self, text: str) -> None:
        self._write(text)

    def begin(self, name: str, started: float, timeout_s: float) -> None:
        return None


class Mute(Display):
    """Says nothing: rank 0 speaks for all."""

    def line(self, text: str) -> None:
        return None

    def event(self, event: Event) -> None:
        return None

    def begin(self, name: str, started: float, timeout_s: float) -> None:
        return None


class Plain(Display):
    """Lines one after the other, those of a search at growing intervals."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._next = 0.0
        self._began = time.monotonic()

    def line(self, text: str) -> None:
        self._write(text)

    def begin(self, name: str, started: float, timeout_s: float) -> None:
        self._next, self._began = 0.0, time.monotonic()

    def event(self, event: Event) -> None:
        if isinstance(event, SearchProgressed):
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + max(_LEAST_SECONDS, _SHARE_OF_ELAPSED * (now - self._began))
        super().event(event)


class Rich(Display):
    """Plain lines that scroll by, and below them a view of the stage at hand that renews itself."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=stream, highlight=False, markup=False, soft_wrap=True)
        self._lock = threading.Lock()
        self._plain = Plain(console.print)  # what it prints appears above the live view
        self._name, self._started, self._timeout_s = "", time.monotonic(), float("inf")
        self._stage, self._worst, self._domains = "load", "", ""
        self._done, self._running = "", ""
        self._live: Live = Live(
            get_renderable=self._view, console=console, refresh_per_second=_REFRESH_PER_SECOND, transient=True
        )

    def line(self, text: str) -> None:
        self._plain.line(text)

    def begin(self, name: str, started: float, timeout_s: float) -> None:
        with self._lock:
            self._name, self._started, self._timeout_s = name, started, timeout_s
            self._stage, self._worst, self._domains = "load", "", ""
        self._plain.begin(name, started, timeout_s)

    def overall(self, done: str, running: str) -> None:
        with self._lock:
            self._done, self._running = done, running

    def event(self, event: Event) -> None:
        with self._lock:
            match event:
                case StageStarted():
                    self._stage = event.stage
                case BoundsFound():
                    self._worst = f"{event.worst:.6g}  ({event.proven} of {event.clauses} clauses proved)"
                case SearchProgressed():
                    self._worst = f"{event.worst:.6g}"
                    self._domains = f"{event.domains_open} open, {event.domains_visited} visited, round {event.round}"
        self._plain.event(event)

    def _view(self) -> Table:
        from rich.table import Table

        with self._lock:
            elapsed = time.monotonic() - self._started
            one = [
                ("instance", self._name),
                ("stage", self._stage),
                ("time", f"{elapsed:.1f} / {self._timeout_s:.0f} s"),
                ("worst bound", self._worst),
                ("domains", self._domains),
            ]
            rows = [
                ("list", self._done),
                *([("running", self._running)] if self._running else one),
                ("memory", _memory() if not self._done else ""),  # of a list it is in other processes
            ]
        table = Table.grid(padding=(0, 2))
        for name, value in rows:
            if value:
                table.add_row(name, value)
        return table

    def __enter__(self) -> Display:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def make_display(quiet: bool, stream: TextIO | None = None) -> Display:
    """The display that fits ``stream`` (standard output): the result only, plain lines, or live on a terminal."""
    stream = sys.stdout if stream is None else stream

    def write(text: str) -> None:
        stream.write(f"{text}\n")
        stream.flush()

    if quiet:
        return Quiet(write)
    return Rich(stream) if stream.isatty() else Plain(write)


def _memory() -> str:
    """Memory in use: the GPU's where one is, else the process's own."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"{torch.cuda.memory_allocated() / 2**20:.0f} MiB on the GPU"
    import resource

    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most"
