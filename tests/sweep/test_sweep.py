"""`abcrown sweep`: interrupted and gone on with, crashes and signals, changed settings, bad words."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from complete_verifier.__main__ import main
from complete_verifier.config import to_yaml
from complete_verifier.driver.instances import listed_instances
from complete_verifier.driver.sweep_options import read_sweep
from complete_verifier.driver.sweeps import SETTINGS, TABLE, _rows_that_hold
from complete_verifier.reporting.display import Quiet
from complete_verifier.reporting.rows import Row
from complete_verifier.reporting.table import Table, read_table
from complete_verifier.sweep.fingerprint import Fingerprints
from tests.end_to_end.runs import COMMON, Hard, hopeless, mlp_model
from tests.support import ROOT
from tests.sweep.watching import children_of, eventually, gone, servers_of

FAST = (*COMMON, "--pgd_steps", "5", "--pgd_restarts", "2", "--init_iteration", "3")
BY_THE_CLOCK = {"seconds": 0.0, "phases": {}, "peak_mib": None, "finished_at": ""}


class Lines(Quiet):
    """A display that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__(self.lines.append)

    def line(self, text: str) -> None:
        self.lines.append(text)


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    """The sweep as a program of its own."""
    line = [sys.executable, "-m", "complete_verifier", "sweep", "--csv", str(folder / "list.csv"), *FAST, *flags]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


# -- interrupted and gone on with -------------------------------------------------------------------------------------
def test_an_interrupted_sweep_ends_with_the_same_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: Callable[[int, int], int]
) -> None:
    """Killed twice (SIGKILL) where it happens to be; a broken row in the middle."""
    number = count(30, 60)
    rows = []
    for i in range(number):
        hard = Hard.make([2, 5, 1], seed=i)
        onnx.save(mlp_model(hard.layers), tmp_path / f"n{i}.onnx")
        (tmp_path / f"p{i}.vnnlib").write_text(hard.text((-2.0, 0.3, -0.01)[i % 3]))
        rows.append(f"n{i if i != 7 else 'one'}.onnx,p{i}.vnnlib,60\n")
    (tmp_path / "list.csv").write_text("".join(rows))
    words = ["sweep", "--csv", str(tmp_path / "list.csv"), "--jobs", "2", *FAST]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 2
    lines_whole = capsys.readouterr().out.splitlines()

    out = tmp_path / "killed"
    for share in (0.25, 0.6):
        with start(tmp_path, "--out", str(out), "--jobs", "2") as process:
            assert eventually(lambda share=share: lines_of(out / TABLE) > share * number)  # type: ignore[misc]
            servers = servers_of(process.pid)
            process.kill()
        assert servers and eventually(lambda found=servers: all(map(gone, found)))  # type: ignore[misc]
    before = read_table(out / TABLE)
    known = len(before)
    assert 0.6 * number <= known < number
    assert main([*words, "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert f"going on with an interrupted sweep: {known} of {number} rows are there" in printed.out

    assert set(map(str, before)) <= set(map(str, read_table(out / TABLE)))  # with their times: not run again
    whole, killed = (
        [replace(row, **BY_THE_CLOCK) for row in read_table(path / TABLE)]  # type: ignore[arg-type]
        for path in (tmp_path / "whole", out)
    )
    assert killed == whole
    assert [row.index for row in whole] == list(range(number))  # in order, whatever order they ended in
    kinds = [{row.verdict for row in whole[i::3] if row.index != 7} for i in range(3)]
    assert kinds == [{"unsat"}, {"sat"}, {"unsat"}] and whole[7].verdict == "error"
    by_status = [line for line in printed.out.splitlines() if "), index: [" in line]
    assert sorted(by_status) == sorted(line for line in lines_whole if "), index: [" in line)
    found = {path.name for path in (out / "counterexamples").iterdir()}
    assert found == {f"{row.index:04d}.txt" for row in whole if row.verdict == "sat"}


def test_crashes_are_rows_and_ctrl_c_ends_everything(tmp_path: Path) -> None:
    hopeless(tmp_path)
    (tmp_path / "list.csv").write_text("net.onnx,prop.vnnlib,100\n" * 3)
    out = tmp_path / "out"
    with start(tmp_path, "--out", str(out), "--jobs", "2", "--pgd_order", "skip") as process:
        assert eventually(lambda: bool(servers_of(process.pid)))
        (server,) = servers_of(process.pid)
        # the first process only asks for the device; two instances at a time follow it
        assert eventually(lambda: len(children_of(server)) == 2)
        first, second = children_of(server)
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: lines_of(out / TABLE) == 2)
        assert eventually(lambda: len(children_of(server)) == 2 and first not in children_of(server))
        third = children_of(server)[-1]
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        text, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 128 + signal.SIGINT
    assert eventually(lambda: all(map(gone, (server, first, second, third))))
    (row,) = read_table(out / TABLE)
    assert (row.index, row.verdict, row.status) == (0, "error", "unknown-crash")
    assert "ended by SIGKILL (out of memory?)" in row.message and row.peak_mib is not None and row.peak_mib > 50
    assert "ended by SIGINT: 2 of 3 rows are missing" in text and "Traceback" not in text


# -- a folder that is there already -----------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "list.csv").write_text("n.onnx,p.vnnlib,60\nn.onnx,q.vnnlib,60\n")
    (tmp_path / "out").mkdir()
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    return ["--csv", str(folder / "list.csv"), "--out", str(folder / "out"), *more]


def leave_rows(folder: Path) -> None:
    """What a sweep with default settings leaves: one verdict, one error."""
    config = read_sweep(words(folder)).loaded.config
    prints = Fingerprints(config)
    rows = [
        Row(
            index=one.index,
            onnx="n.onnx",
            vnnlib="p.vnnlib",
            timeout=60.0,
            verdict=("unsat", "error")[one.index],
            status="x",
            seconds=1.0,
            fingerprint=prints.of(one.network, one.specification, 60.0),
        )
        for one in listed_instances(config)
    ]
    Table(folder / "out" / TABLE, rows)
    (folder / "out" / SETTINGS).write_text(to_yaml(config, only_non_default=True))


def test_what_changed_is_said_and_nothing_is_lost(folder: Path) -> None:
    leave_rows(folder)
    display = Lines()
    sweep = read_sweep(words(folder, "--batch_size", "7"))
    assert _rows_that_hold(sweep, listed_instances(sweep.loaded.config), display) == []
    (line,) = display.lines
    assert "2 rows of" in line and "other settings (solver.batch_size 64 -> 7)" in line
    (aside,) = (folder / "out").glob("results-until-*.csv")
    assert len(read_table(aside)) == 2 and aside.name in line


def test_errors_are_run_again_on_request(folder: Path) -> None:
    leave_rows(folder)
    for flags, kept in (((), [0, 1]), (("--retry_errors",), [0])):
        sweep = read_sweep(words(folder, *flags))
        rows = _rows_that_hold(sweep, listed_instances(sweep.loaded.config), Lines())
        assert [row.index for row in rows] == kept


def test_a_complete_sweep_only_says_its_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_rows(folder)
    assert main(["sweep", *words(folder, "--report")]) == 1  # a row that crashed
    printed = capsys.readouterr()
    assert "total verified (safe/unsat): 1 , total falsified (unsafe/sat): 0 , timeout: 1" in printed.out
    assert "x (total 2), index: [0, 1]" in printed.out and printed.err == ""
    assert (folder / "out" / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_one_sweep_at_a_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(folder / "out" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # a shared one is enough to be in its way
        assert main(["sweep", *words(folder)]) == 2
    assert "another sweep is writing there" in capsys.readouterr().err


# -- bad words --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ([], "--csv LIST.csv"),
        (["--csv", "no.csv", "--out", "out"], "no.csv"),
        (["--csv", "list.csv"], "--out DIR is missing"),
        (["--csv", "list.csv", "--out", "list.csv"], "cannot be written"),
        (["--csv", "list.csv", "--out", "out", "--jobs", "0"], "--jobs 0"),
        (["--csv", "list.csv", "--out", "out", "--jobs", "many"], "--jobs"),
        (["--csv", "list.csv", "--out", "out", "--batch_sise", "3"], "--batch_size"),
        (["--csv", "list.csv", "--out", "out", "--compare", "no.csv"], "--compare no.csv"),
        (["--csv", "list.csv", "--out", "out", "--compare", "list.csv"], "no columns onnx and vnnlib"),
    ],
)
def test_bad_words_are_one_line(
    folder: Path, line: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert main(["sweep", *line]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.err.startswith("error: ") and told in printed.err


def test_a_device_that_is_not_there_ends_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["sweep", *words(folder, "--device", "cuda")]) == 2
    assert capsys.readouterr().err.startswith("error: --device: general.device = cuda: no CUDA device")
    assert read_table(folder / "out" / TABLE) == []


def test_paths_start_beside_the_list_or_from_the_root(folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    (data / "config.yaml").write_text("")  # which --root_path names as well
    for flags, root in (((), folder), (("--root_path", str(data)), data)):
        config = read_sweep(words(folder, "--vnnlib_path", "one.vnnlib", *flags)).loaded.config
        assert [one.network for one in listed_instances(config)] == [root / "n.onnx"] * 2
