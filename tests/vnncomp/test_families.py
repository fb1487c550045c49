"""The script that runs families: what counts as wrong and late, what is run again, what is written."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import families
from benchmarks.family_report import Row, append_row, markdown, read_rows, summarise, summary_line
from tests.end_to_end.runs import Hard
from tests.support import ROOT

ROW = Row(
    family="vit", onnx="onnx/a.onnx", vnnlib="vnnlib/p.vnnlib", config="vnncomp23/vit.yaml", limit=10.0,
    expected="unsat", verdict="unsat", seconds=3.0, replay="", note="", peer_verdict="unsat", peer_seconds="7",
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "wrong", "late"),
    [
        ({}, False, False),
        ({"verdict": "sat", "replay": "ok"}, True, False),
        ({"expected": "sat"}, True, False),
        ({"expected": "sat", "verdict": "sat", "replay": "ok"}, False, False),
        ({"expected": "sat", "verdict": "sat", "replay": "the point is outside"}, True, False),
        ({"expected": "unknown", "verdict": "sat", "replay": "ok"}, False, False),
        ({"verdict": "timeout", "seconds": 11.9}, False, False),
        ({"verdict": "timeout", "seconds": 12.1}, False, True),
        ({"verdict": "error 1"}, False, False),
    ],
)
def test_what_is_wrong_and_what_is_late(change: dict[str, str | float], wrong: bool, late: bool) -> None:
    row = replace(ROW, **change)  # type: ignore[arg-type]
    assert (row.wrong, row.late) == (wrong, late)


def test_rows_survive_the_file_and_the_last_one_counts(tmp_path: Path) -> None:
    table = tmp_path / "results.csv"
    assert read_rows(table) == {}
    first, again = replace(ROW, verdict="timeout", note='said "x, y"'), replace(ROW, limit=60.5, seconds=40.25)
    other = replace(ROW, vnnlib="vnnlib/q.vnnlib")
    for row in (first, other, again):
        append_row(table, row)
    assert read_rows(table) == {again.key: again, other.key: other}
    table.write_text("onnx,verdict\n")
    with pytest.raises(SystemExit, match="has other columns"):
        read_rows(table)


def test_the_summary_counts() -> None:
    rows = [
        ROW,
        replace(ROW, vnnlib="b", verdict="timeout", seconds=13.0),
        replace(ROW, vnnlib="c", expected="sat", verdict="sat", replay="ok", seconds=5.0),
        replace(ROW, vnnlib="d", expected="sat", seconds=9.0),
        replace(ROW, vnnlib="e", expected="unknown", verdict="unsat"),
        replace(ROW, vnnlib="f", verdict="error 2"),
        replace(ROW, family="acasxu", verdict="unknown"),
    ]
    vit, acasxu = summarise(rows)
    assert (vit.run, vit.known, vit.solved, vit.beyond, vit.wrong, vit.late, vit.errors) == (6, 5, 2, 1, 1, 1, 1)
    assert vit.slowest == "a d 9.0 s"
    assert (acasxu.family, acasxu.run, acasxu.solved, acasxu.slowest) == ("acasxu", 1, 0, "")
    assert "solved 2 of 5 known (40 %), 1 beyond, 1 wrong, 1 late" in summary_line(vit)
    page = markdown(rows, "About.")
    assert page.count("\n| vit ") == 7 and "| vit | 6 | 5 | 2 | 1 | 1 | 1 | 1 |" in page


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A folder of one family (called soundnessbench, so that it has a configuration) with a counterexample in one of
    two properties."""
    folder = tmp_path / "bench" / "soundnessbench"
    folder.mkdir(parents=True)
    small = Hard.make([3, 12, 12, 2], seed=3)
    rows = ["family,onnx,vnnlib,timeout,expected"]
    for name, margin in (("unsat", -20.0), ("sat", 0.5)):
        network, specification = small.write(folder, margin)
        shutil.move(specification, folder / f"{name}.vnnlib")
        rows.append(f"soundnessbench,{Path(network).name},{name}.vnnlib,60,{name}")
    (tmp_path / "bench" / "expected.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "bench"


def test_a_run_through_the_command_line(bench: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.families", "--jobs", "1", "--out", str(tmp_path / "out"), "--device", "cpu",
         "--only", " sat", "--cap", "40", "--", "--pgd_restarts", "10"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "ABCROWN_BENCHMARKS": str(bench)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 instances, 1 to run" in done.stdout and "solved 1 of 1 known" in done.stdout
    (row,) = read_rows(tmp_path / "out" / "results.csv").values()
    assert (row.verdict, row.replay, row.limit) == ("sat", "ok", 40.0)
    assert row.config == "vnncomp25/soundnessbench.yaml"
    assert (tmp_path / "out" / "results.md").read_text().count("| soundnessbench |") == 2


def test_a_run_goes_on_where_it_stopped(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Decided instances are left alone; the others are run again if they would get more time, or failed."""
    verdicts = {"unsat.vnnlib": ["timeout", "error 1", "unsat"], "sat.vnnlib": ["unsat"]}
    ran: list[tuple[str, float]] = []

    def run_one(case: families.Case, arguments: argparse.Namespace) -> Row:
        name = case.known["vnnlib"]
        ran.append((name, case.limit))
        return replace(
            ROW, family="soundnessbench", onnx=case.known["onnx"], vnnlib=name, limit=case.limit,
            expected=case.known["expected"], verdict=verdicts[name].pop(0),
        )  # fmt: skip

    def call(cap: str) -> int:
        ran.clear()
        words = ["families", "--benchmarks", str(bench), "--jobs", "1", "--cap", cap, "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", words)
        return families.main()

    monkeypatch.setattr(families, "run_one", run_one)
    assert call("10") == 1  # one is wrong
    assert ran == [("unsat.vnnlib", 10.0), ("sat.vnnlib", 10.0)]
    call("10")
    assert ran == []
    call("20")
    assert ran == [("unsat.vnnlib", 20.0)]
    call("20")
    assert ran == [("unsat.vnnlib", 20.0)]
    call("100")
    assert ran == []
    assert "solved 1 of 2 known (50 %), 0 beyond, 1 wrong" in capsys.readouterr().out
