"""How runs end: the clock's start, interruptions where they may come, exceptions as codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from auto_LiRPA.errors import ContractError, SpecError, WorkerFailed
from complete_verifier.driver import process_clock
from complete_verifier.driver.boundary import Boundary
from complete_verifier.driver.interrupts import ALARM_DELAY, DeadlinePassed, Interrupts, Terminated
from tests.support import ROOT


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.005)


def test_the_alarm_comes_soon_after_the_deadline() -> None:
    interrupts, began = Interrupts(), time.monotonic()
    with interrupts.installed(), pytest.raises(DeadlinePassed), interrupts.exposed(0.05):
        spin(5)
    assert ALARM_DELAY <= time.monotonic() - began < 3


def test_no_alarm_after_the_exposure() -> None:
    interrupts = Interrupts()
    with interrupts.installed():
        with interrupts.exposed(-ALARM_DELAY + 0.1):
            pass
        spin(0.3)


def test_sigterm_waits_where_files_are_written() -> None:
    interrupts = Interrupts()
    with interrupts.installed():
        os.kill(os.getpid(), signal.SIGTERM)
        spin(0.05)  # not exposed: nothing happens
        assert interrupts.terminated
        with pytest.raises(Terminated), interrupts.exposed(10):
            pytest.fail("work began after SIGTERM")


def test_sigterm_ends_the_work_and_only_once() -> None:
    interrupts = Interrupts()
    with interrupts.installed(), pytest.raises(Terminated), interrupts.exposed(10):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            spin(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # while it unwinds
            spin(0.05)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    with Interrupts().installed():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)) == before


def test_a_thread_works_without_signals() -> None:
    done = []

    def work() -> None:
        with Interrupts().installed() as interrupts, interrupts.exposed(1):
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


# -- the clock --------------------------------------------------------------------------------------------------------
def test_the_start_is_before_the_first_line_of_python() -> None:
    """A child says how long ago it was started; the parent knows."""
    code = (
        "import time; e = time.monotonic(); time.sleep(0.2)\n"
        "from complete_verifier.driver.process_clock import process_start\n"
        "print(time.monotonic() - process_start(e))"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    whole = time.monotonic() - began
    assert 0.2 < float(done.stdout) < whole + 0.02


@pytest.mark.parametrize("age", [None, -5.0, 0.0, 1e6])
def test_an_impossible_age_is_not_believed(age: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_clock, "_age", lambda: age)
    entered = time.monotonic() - 1
    assert entered - 0.5 < process_clock.process_start(entered) < entered


# -- the boundary -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (SpecError("a.vnnlib: line 3:\n odd"), 2, "error: a.vnnlib: line 3: odd"),
        (WorkerFailed("rank 3 hangs"), 3, "error: rank 3 hangs"),
        (ContractError("lost"), 1, "internal error: ContractError: lost (--debug shows where; please report it)"),
        (ZeroDivisionError("x"), 1, "internal error: ZeroDivisionError: x (--debug shows where; please report it)"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exceptions_become_codes(error: BaseException, code: int, text: str) -> None:
    told: list[str] = []
    boundary = Boundary(False, told.append)
    with boundary:
        raise error
    assert (boundary.code, told) == (code, [text])


def test_what_ends_the_process_on_purpose_passes() -> None:
    with pytest.raises(Terminated), Boundary(False):
        raise Terminated
