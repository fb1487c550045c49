"""What the process of an instance does, without the process; and what a terminal shows of a list."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from complete_verifier.config import load_config
from complete_verifier.driver.tasks import Failure, Probe, RunInstance, Shared
from complete_verifier.driver.worker import work
from complete_verifier.events import BoundsFound, ProblemLoaded, StageStarted
from complete_verifier.outcome import Verdict
from complete_verifier.reporting.display import make_display
from complete_verifier.reporting.report import InstanceReport
from tests.driver.test_reports import Terminal
from tests.end_to_end.runs import COMMON, Hard

SMALL = Hard.make([2, 6, 1], seed=3)
SETTINGS = load_config([*COMMON, "--pgd_order", "skip"])


def said(task: object) -> list[object]:
    messages: list[object] = []
    work(Shared(SETTINGS), task, messages.append)
    return messages


def task(network: str, specification: str, timeout_s: float = 60.0) -> RunInstance:
    return RunInstance(5, Path(network), Path(specification), time.monotonic(), timeout_s)


def test_events_come_first_and_the_report_last(tmp_path: Path) -> None:
    *events, report = said(task(*SMALL.write(tmp_path, -20.0)))
    assert isinstance(report, InstanceReport)
    assert (report.index, report.verdict, report.error) == (5, Verdict.HOLDS, None)
    assert [type(event) for event in events[:2]] == [StageStarted, ProblemLoaded]
    assert any(isinstance(event, BoundsFound) for event in events)


def test_bad_input_is_a_failure_with_its_line(tmp_path: Path) -> None:
    network, _ = SMALL.write(tmp_path, -20.0)
    *_, failure = said(task(network, str(tmp_path / "no.vnnlib")))
    assert isinstance(failure, Failure) and failure.code == 2
    assert failure.message.startswith("error: ") and "no.vnnlib" in failure.message


def test_a_fault_of_ours_is_a_failure_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **named: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("complete_verifier.driver.instance.run_instance", broken)
    (failure,) = said(task(*SMALL.write(tmp_path, -20.0)))
    assert isinstance(failure, Failure) and failure.code == 1 and "MemoryError: no room" in failure.message


def test_a_probe_says_nothing_where_all_is_well() -> None:
    assert said(Probe()) == []


def test_the_live_view_shows_the_list() -> None:
    stream = Terminal()
    with make_display(False, stream) as display:
        display.overall("3 of 30 done", "a.onnx / p.vnnlib, b.onnx / q.vnnlib")
        time.sleep(0.6)  # it renews itself four times a second
    text = stream.getvalue()
    assert "3 of 30 done" in text and "a.onnx / p.vnnlib, b.onnx" in text and "stage" not in text
