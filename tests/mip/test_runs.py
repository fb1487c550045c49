"""Whole runs of the command line with `mip` and `bab-refine`: verdicts, status words, time, what is said."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.end_to_end.runs import Hard, hopeless, run
from tests.end_to_end.test_verdicts import check_counterexample

SMALL = Hard.make([3, 8, 8, 2], seed=3)
QUICK = ("--pgd_order", "skip", "--init_iteration", "3", "--iteration", "10", "--mip_multi_proc", "1")
MIP = ("--complete_verifier", "mip", *QUICK)
REFINE = ("--complete_verifier", "bab-refine", *QUICK)


def test_mip_decides_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, tmp_path, SMALL.write(tmp_path, -0.01), *MIP)
    assert (done.code, done.results, done.stats["status"]) == (0, "unsat", "safe-mip"), done.out
    files = SMALL.write(tmp_path, +0.01)
    done = run(capsys, tmp_path, files, *MIP)
    assert done.results is not None and done.stats["status"] == "unsafe-mip", done.out
    check_counterexample(done.results, *files)
    done = run(capsys, tmp_path, files, *MIP, "--mip_skip_unsafe")
    assert (done.word, done.stats["status"]) == ("unknown", "unknown-mip")


def test_refinement_then_search_decides_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, tmp_path, SMALL.write(tmp_path, -0.01), *REFINE)
    assert (done.code, done.results) == (0, "unsat"), done.out
    assert done.stats["status"] in ("safe", "safe-incomplete-refine")
    assert "Refined " in done.out and "bounds of neurons tightened" in done.out
    files = SMALL.write(tmp_path, +0.05)
    done = run(capsys, tmp_path, files, *REFINE)
    assert done.word in ("sat", "unknown")
    if done.word == "sat":
        assert done.results is not None
        check_counterexample(done.results, *files)


def test_bounds_over_refined_neurons_can_be_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, tmp_path, SMALL.write(tmp_path, -0.27), *REFINE, "--bound_prop_method", "crown")
    assert (done.results, done.stats["status"]) == ("unsat", "safe-incomplete-refine"), done.out


@pytest.mark.parametrize("flags", [MIP, REFINE])
def test_the_deadline_is_kept_and_no_process_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    began = time.monotonic()
    done = run(capsys, tmp_path, hopeless(tmp_path), *flags, "--timeout", "8")
    assert time.monotonic() - began < 10
    assert done.word == "timeout"
    assert done.stats["status"] == ("unknown-mip" if flags is MIP else "unknown")
    left = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True, check=False).stdout
    mine = [line for line in left.splitlines() if "mip.worker" in line and line.split()[0] == str(os.getpid())]
    assert not mine


def test_keys_of_other_solvers_are_passed_over_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--mip_solver", "gurobi", "--disable_adv_warmup")
    done = run(capsys, tmp_path, SMALL.write(tmp_path, -20.0), *MIP, *flags)
    assert done.results == "unsat"
    lines = [line for line in done.out.splitlines() if line.startswith("warning: ")]
    assert any("mip_solver" in line and "HiGHS" in line for line in lines)
    assert any("adv_warmup" in line for line in lines)
