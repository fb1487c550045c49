"""Each task has a process of its own: what one breaks is its own affair, and none outlives the sweep."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from auto_LiRPA.errors import WorkerFailed
from complete_verifier.sweep import scheduler as scheduler_module
from complete_verifier.sweep.processes import Processes
from complete_verifier.sweep.queue import LocalQueue
from complete_verifier.sweep.scheduler import Finish, Job, Scheduler
from tests.support import ROOT
from tests.sweep.watching import eventually, gone, servers_of

ACT = "tests.sweep.targets:act"


class Book:
    """An owner that writes down what it is told."""

    def __init__(self, tasks: Sequence[object], limit_s: float = 60.0) -> None:
        self.tasks, self.limit_s = tasks, limit_s
        self.messages: dict[int, list[object]] = {index: [] for index in range(len(tasks))}
        self.finishes: dict[int, Finish] = {}

    def job(self, index: int) -> Job:
        return Job(self.tasks[index], self.limit_s)

    def message(self, index: int, message: object) -> None:
        assert index not in self.finishes
        self.messages[index].append(message)

    def finished(self, index: int, finish: Finish) -> None:
        assert index not in self.finishes
        self.finishes[index] = finish

    def code(self, index: int) -> int:
        ended = self.finishes[index].ended
        assert ended is not None
        return ended.exit_code


def run(tasks: Sequence[object], slots: int = 2, limit_s: float = 60.0, shared: object = None) -> Book:
    book = Book(tasks, limit_s)
    with Processes(ACT, shared) as processes:
        Scheduler(LocalQueue(range(len(tasks))), book, processes, slots).run(lambda: False)
    assert sorted(book.finishes) == list(range(len(tasks)))
    return book


def test_what_one_breaks_the_others_do_not_notice(tmp_path: Path) -> None:
    tasks = [
        ("add", 1), ("raise", "no memory"), ("signal", signal.SIGSEGV), ("add", 2), ("signal", signal.SIGKILL),
        ("half",), ("print", "said to nobody"), ("add", 3), ("leave", str(tmp_path / "pid")),
    ]  # fmt: skip
    book = run(tasks, shared="all")
    # every process starts as the first one did: nothing of another is left in it
    assert [book.messages[i] for i in (0, 3, 7)] == [[("all", 2, 1)], [("all", 3, 1)], [("all", 4, 1)]]
    assert [book.code(i) for i in range(9)] == [0, 1, -signal.SIGSEGV, 0, -signal.SIGKILL, -signal.SIGKILL, 0, 0, 0]
    assert "MemoryError: no memory" in book.finishes[1].output
    assert "Segmentation fault" in book.finishes[2].output  # where it was, for the log
    assert book.messages[5] == ["first"]  # a message that its death cut off is none
    assert book.finishes[6].output == "said to nobody\n"
    assert gone(int((tmp_path / "pid").read_text()))  # what it started and left
    assert all(finish.ended is not None and finish.ended.peak_mib > 1 for finish in book.finishes.values())


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "OVERRUN_S", 0.3)
    book = run([("hang", str(tmp_path / "pid")), ("add", 1)], slots=1, limit_s=0.7)
    assert book.finishes[0].overran and book.code(0) == -signal.SIGKILL
    assert not book.finishes[1].overran and book.code(1) == 0
    assert 1.0 <= book.finishes[0].seconds < 20


def test_a_lost_server_is_replaced_and_its_work_done_again(tmp_path: Path) -> None:
    book = run([("orphan once", str(tmp_path / "tried")), ("add", 1), ("orphan",), ("add", 2)], slots=1)
    assert book.messages[0] == ["second try"] and book.code(0) == 0
    assert [book.messages[i] for i in (1, 3)] == [[(None, 2, 1)], [(None, 3, 1)]]
    assert book.finishes[2].ended is None  # but not for ever


def test_stopping_ends_what_runs(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    book = Book([("hang", str(path)), ("add", 1)])
    with Processes(ACT, None) as processes:
        Scheduler(LocalQueue([0, 1]), book, processes, 1).run(path.exists)
    assert book.finishes == {}
    assert eventually(lambda: gone(int(path.read_text())))


def test_nothing_outlives_a_sweep_that_is_killed(tmp_path: Path) -> None:
    program = f"from tests.sweep.targets import hang_forever; hang_forever({str(tmp_path)!r})"
    files = [tmp_path / "a", tmp_path / "b"]
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) as process:
        assert eventually(lambda: all(file.exists() and file.read_text() for file in files))
        servers = servers_of(process.pid)
        process.kill()
    assert servers
    pids = [int(file.read_text()) for file in files]
    assert eventually(lambda: all(gone(pid) for pid in (*pids, *servers)))


def test_a_server_that_cannot_start_says_why() -> None:
    with Processes("tests.sweep.no_such_module:act", None) as processes:
        with pytest.raises(WorkerFailed, match="No module named 'tests.sweep.no_such_module'"):
            processes.start(("add", 1))
