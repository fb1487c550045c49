"""`kill -9` at any moment, through the command line: the run that resumes ends with the verdict that MILP gives."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from complete_verifier.bab.checkpoint import MANIFEST, Checkpoint
from tests.end_to_end.runs import COMMON, Hard, Run, hopeless, run
from tests.support import ROOT

# Many short rounds: small batches, few iterations, nothing that would settle it before the search.
SEARCH = (
    *("--pgd_order", "skip", "--complete_verifier", "bab", "--batch_size", "2", "--timeout", "600"),
    *("--set", "solver.beta-crown.iteration=4", "--set", "bab.branching.method=babsr"),
    *("--set", "solver.min_batch_size_ratio=0", "--set", "solver.alpha-crown.iteration=5"),
    *("--checkpoint_seconds", "0.05"),
)  # fmt: skip
LONGEST_WAIT_S = 120.0


@pytest.fixture(scope="module")
def case() -> Hard:
    """Some hundreds of sub-problems; the least output is known by MILP."""
    return Hard.make([4, 14, 14, 1], 3)


def start(files: tuple[str, str], folder: Path, *flags: str) -> subprocess.Popen[bytes]:
    network, specification = files
    words = ["--onnx_path", network, "--vnnlib_path", specification, "--results_file", str(folder / "killed.txt")]
    return subprocess.Popen(
        [sys.executable, "-m", "complete_verifier", *words, *COMMON, *SEARCH, *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def generation(folder: Path) -> int:
    try:
        return int(json.loads((folder / MANIFEST).read_text())["generation"])
    except FileNotFoundError:
        return 0


def kill_within(process: subprocess.Popen[bytes], folder: Path, more: int, delay: float) -> bool:
    """SIGKILL a moment after some more checkpoints; False if it had ended by itself."""
    wanted, began = generation(folder) + more, time.monotonic()
    while process.poll() is None and generation(folder) < wanted:
        assert time.monotonic() - began < LONGEST_WAIT_S, "no checkpoint is written"
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0), err.decode()
    return process.returncode != 0


@pytest.mark.parametrize("word", ["unsat", "sat"])
def test_killed_and_resumed(
    word: str, case: Hard, count: Callable[[int, int], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three times (twenty in the long form) and then to the end: nothing that was open is lost."""
    files = case.write(tmp_path, -0.02 if word == "unsat" else 0.02)
    kills, wanted, gen, visited = 0, count(3, 20) if word == "unsat" else count(1, 10), random.Random(5), 0
    folder = tmp_path / "saved"
    both = ("--checkpoint", str(folder), "--resume", str(folder))
    while kills < wanted:
        if not kill_within(start(files, tmp_path, *both), folder, gen.randint(1, 3), 0.1 * gen.random()):
            # it has come to an end by itself: that counts too, and the next one begins anew
            assert (tmp_path / "killed.txt").read_text().split("\n")[0] == word
            shutil.rmtree(folder)
            visited = 0
            continue
        kills += 1
        found = Checkpoint.read(folder)
        assert found.rows > 0 and int(str(found.state["visited"])) >= visited, "work was lost"
        visited = int(str(found.state["visited"]))
    last = run(capsys, tmp_path, files, *SEARCH, "--resume", str(folder))
    assert (last.code, last.word) == (0, word), last.err
    assert f"going on from {folder}" in last.out
    assert last.stats["bab"]["domains_visited"] >= visited  # type: ignore[index]
    assert last.stats["phases"]["incomplete"] == last.stats["phases"]["attack"] == 0  # type: ignore[index]


def refused(capsys: pytest.CaptureFixture[str], folder: Path, files: tuple[str, str], *flags: str) -> str:
    """The one line of a run that ends with exit code 2 and writes nothing."""
    ended: Run = run(capsys, folder, files, *flags)
    assert ended.code == 2 and ended.results is None
    (line,) = ended.err.strip().split("\n")
    return line


def test_what_does_not_fit_is_refused(case: Hard, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another network, another property, other settings, damage, nothing there: one line that says what to do."""
    files = case.write(tmp_path, -0.02)
    folder = tmp_path / "saved"
    first = run(capsys, tmp_path, files, *SEARCH, "--max_iterations", "3", "--checkpoint", str(folder))
    assert first.word == "unknown" and (folder / MANIFEST).is_file()

    other = tmp_path / "other"
    other.mkdir()
    resume = (*SEARCH, "--resume", str(folder))
    assert "another property" in refused(capsys, tmp_path, case.write(other, -0.03), *resume)
    network = Hard.make([4, 14, 14, 1], 4)
    assert "another network" in refused(capsys, tmp_path, network.write(other, -0.02), *resume)
    line = refused(capsys, tmp_path, files, *SEARCH, "--tree_traversal", "depth_first", "--resume", str(folder))
    assert "bab.tree_traversal" in line and str(folder) in line
    assert "holds no checkpoint" in refused(capsys, tmp_path, files, *SEARCH, "--resume", str(tmp_path / "none"))
    line = refused(capsys, tmp_path, network.write(other, -0.02), *SEARCH, "--checkpoint", str(folder))
    assert "would be lost" in line
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(capsys, tmp_path, files, *SEARCH, "--checkpoint", str(tmp_path / "file"))
    part = next(folder.glob("*r000*"))
    part.write_bytes(part.read_bytes()[:-1])
    assert f"{part}: this file of a checkpoint is damaged" in refused(capsys, tmp_path, files, *resume)


def test_a_list_has_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.csv").write_text("a.onnx,b.vnnlib,10\n")
    from complete_verifier.__main__ import main

    code = main(["--csv_name", str(tmp_path / "list.csv"), "--checkpoint", str(tmp_path / "c"), *COMMON])
    assert code == 2 and "single instance" in capsys.readouterr().err


def test_the_deadline_is_kept_and_the_rest_is_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that time ends leaves what is open; one with more time goes on from there and is not done sooner."""
    files = hopeless(tmp_path)
    saved = ("--checkpoint", str(tmp_path / "saved"))
    search = [word if word != "600" else "4" for word in SEARCH]
    began = time.monotonic()
    first = run(capsys, tmp_path, files, *search, *saved)
    assert first.word == "timeout" and time.monotonic() - began < 6
    found = Checkpoint.read(tmp_path / "saved")
    assert found.rows > 0
    second = run(capsys, tmp_path, files, *search, "--resume", str(tmp_path / "saved"))
    assert second.word == "timeout"
    assert int(str(Checkpoint.read(tmp_path / "saved").state["visited"])) >= int(str(found.state["visited"]))
