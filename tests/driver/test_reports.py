"""Files are written whole or not at all; lines and live view say what scripts and people look for."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest

from auto_LiRPA.errors import ConfigError
from complete_verifier.events import AttackEnded, BoundsFound, Note, SearchProgressed, StageStarted
from complete_verifier.outcome import Verdict
from complete_verifier.reporting import display as display_module
from complete_verifier.reporting.display import make_display
from complete_verifier.reporting.report import InstanceReport, SearchUse
from complete_verifier.reporting.results import (
    prepare_output,
    statistics,
    write_atomically,
    write_result,
    write_statistics,
)
from complete_verifier.reporting.rows import row_of
from complete_verifier.reporting.summary import summary_lines

REPORT = InstanceReport(
    index=0, network="n.onnx", specification="p.vnnlib", verdict=Verdict.HOLDS, status="safe", stopped_by="x",
    wall_s=1.5, timeout_s=60.0,
)  # fmt: skip
ROUND = SearchProgressed(1, 10, 20, -0.5, 1.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# -- files ------------------------------------------------------------------------------------------------------------
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.txt"
    path.write_bytes(b"old")

    def broken(source: str, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    link.symlink_to(real)
    write_atomically(link, b"1")
    assert link.is_symlink() and real.read_bytes() == b"1"
    null = tmp_path / "null"
    null.symlink_to("/dev/null")
    prepare_output(null, "x")
    write_atomically(null, b"1")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_output_is_prepared_before_the_work(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "r.txt"
    prepare_output(path, "general.results_file")
    assert path.parent.is_dir() and not path.exists()
    with pytest.raises(ConfigError, match="general.results_file = .*: is a folder"):
        prepare_output(tmp_path, "general.results_file")


@pytest.mark.parametrize("verdict", [Verdict.HOLDS, Verdict.UNKNOWN, Verdict.TIMEOUT])
def test_the_results_file_is_one_word(tmp_path: Path, verdict: Verdict) -> None:
    write_result(tmp_path / "r.txt", replace(REPORT, verdict=verdict))
    assert (tmp_path / "r.txt").read_text() == verdict.value


def test_after_sat_the_counterexample_follows(tmp_path: Path) -> None:
    write_result(
        tmp_path / "r.txt", replace(REPORT, verdict=Verdict.VIOLATED, counterexample="((X_0  1.0)\n(Y_0  2.0))")
    )
    assert (tmp_path / "r.txt").read_text() == "sat\n((X_0  1.0)\n(Y_0  2.0))"


def test_statistics_are_json_whatever_the_numbers(tmp_path: Path) -> None:
    inf = float("inf")
    report = replace(REPORT, row_bounds=(1.0, -inf, float("nan")), search=SearchUse(3, 1, 2.0, -inf), timeout_s=inf)
    write_statistics(tmp_path / "s.json", report)
    content = json.loads((tmp_path / "s.json").read_text(), parse_constant=pytest.fail)
    assert content["bounds"]["lower"] == [1.0, None, None]
    assert content["bab"]["worst_bound"] is None and content["timeout_s"] is None
    assert content["bab"]["domains_visited"] == 3
    assert statistics(REPORT)["bab"]["rounds"] == 0  # type: ignore[index]


# -- lines ------------------------------------------------------------------------------------------------------------
def test_the_summary_counts() -> None:
    reports = [
        REPORT,
        replace(REPORT, index=1, verdict=Verdict.VIOLATED, status="unsafe-pgd", wall_s=0.5),
        replace(REPORT, index=2, verdict=Verdict.TIMEOUT, status="unknown", wall_s=4.0),
        replace(REPORT, index=3, verdict=Verdict.UNKNOWN, status="unknown-error", error="error: x"),
    ]
    lines = list(summary_lines([row_of(report) for report in reports]))
    assert lines[1] == "Final verified acc: 25.0% (total 4 examples)"
    assert lines[2].endswith("(safe/unsat): 1 , total falsified (unsafe/sat): 1 , timeout: 2")
    assert "mean time for ALL instances (total 4):1.875, max time: 4.0" in lines
    assert lines[-4:] == [
        "safe (total 1), index: [0]",
        "unsafe-pgd (total 1), index: [1]",
        "unknown (total 1), index: [2]",
        "unknown-error (total 1), index: [3]",
    ]


def test_plain_lines_come_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    now = [100.0]
    monkeypatch.setattr(display_module.time, "monotonic", lambda: now[0])
    with make_display(False, stream) as display:
        display.begin("x", 100.0, 60.0)
        for number in range(1000):
            now[0] += 0.1
            display.event(replace(ROUND, round=number))
        display.event(AttackEnded(True, 3, 4, 1.0))
    lines = stream.getvalue().splitlines()
    rounds = [line for line in lines if line.startswith("BaB round")]
    assert rounds[0].startswith("BaB round 0: Length of domains: 10, Current (lb-rhs): -0.5, 20 domains visited")
    assert 20 < len(rounds) < 60  # of 1000 rounds in 100 s
    assert lines[-2] == "PGD attack succeeded!"


def test_bounds_in_the_words_that_scripts_know() -> None:
    stream = io.StringIO()
    with make_display(False, stream) as display:
        display.event(BoundsFound("CROWN", (0.5, -1.0), -1.0, 1, 2, 7))
        display.event(BoundsFound("alpha-CROWN", (0.5, 1.0), 0.5, 2, 2, 5, iterations=3))
        display.event(StageStarted("bab", 3.0))
    assert stream.getvalue().splitlines() == [
        "initial CROWN bounds (first 10 items): [0.5, -1]",
        "# of unstable neurons: 7",
        "Global lower bound: -1",
        "1 / 2 OR specs are verified.",
        "initial alpha-crown bounds (first 10 items): [0.5, 1]",
        "alpha-CROWN took 3 iterations",
        "Global lower bound: 0.5",
        "verified with init bound!",
    ]


def test_the_live_view_shows_where_the_run_is() -> None:
    stream = Terminal()
    with make_display(False, stream) as display:
        display.begin("net / prop", time.monotonic() - 2.0, 60.0)
        display.event(Note("[not markup] a line"))
        display.event(StageStarted("bab", 50.0))
        display.event(ROUND)
        display.event(BoundsFound("CROWN", (0.5,), -0.25, 0, 1, 7))
        time.sleep(0.6)  # it renews itself four times a second
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "[not markup] a line" in text
    for shown in ("net / prop", "bab", "/ 60 s", "-0.25", "10 open, 20 visited", "MiB"):
        assert shown in text


def test_quiet_prints_results_only() -> None:
    stream = Terminal()
    with make_display(True, stream) as display:
        display.event(ROUND)
        display.line("no")
        display.result("Result: unsat")
    assert stream.getvalue() == "Result: unsat\n"
