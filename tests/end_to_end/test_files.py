"""What runs leave behind: results, counterexamples, statistics, lists; and how they end from outside."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import onnx
import pytest

from complete_verifier.__main__ import main
from complete_verifier.config import load_config
from complete_verifier.driver.instances import listed_instances
from complete_verifier.driver.limits import timeout_seconds
from complete_verifier.reporting.table import read_table
from tests.end_to_end.runs import COMMON, Hard, hopeless, mlp_model, run, write
from tests.nets import dense_layers
from tests.support import ROOT

SMALL = Hard.make([2, 6, 1], seed=3)
RANK_KEYS = {
    "rank", "device", "resident_mib", "weight_mib", "peak_allocated_mib", "peak_reserved_mib", "process_mib",
    "tiles", "live_blocks_max", "collectives",
}  # fmt: skip


def test_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, tmp_path, SMALL.write(tmp_path, -20.0))
    stats = done.stats
    assert stats["verdict"] == "unsat"
    assert set(stats["phases"]) == {"load", "attack", "incomplete", "bab"}
    assert 0 < sum(stats["phases"].values()) <= stats["wall_s"]
    assert {"domains_visited", "rounds", "domains_per_s"} <= set(stats["bab"])
    assert len(stats["bounds"]["lower"]) == 1
    assert {"world_size", "mode", "rows", "domains", "tile_rows", "block_mib"} <= set(stats["parallel"])
    (rank,) = stats["ranks"]
    assert set(rank) == RANK_KEYS
    weights = sum(layer.weight.numel() for layer in SMALL.layers) * 4 / 2**20
    assert rank["weight_mib"] == pytest.approx(weights) and rank["tiles"] > 0


def test_quiet_says_the_result_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, tmp_path, SMALL.write(tmp_path, -20.0), "--quiet")
    names = [line.split()[0] for line in done.out.splitlines()]
    assert names == ["verified_status", "verified_success", "Stopped", "Result:", "Time:"]


def test_print_config_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, tmp_path, ("no.onnx", "no.vnnlib"), "--print_config")
    assert done.code == 0 and done.results is None
    assert "onnx_path: no.onnx" in done.out


def test_no_words_print_a_short_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if line.startswith("  abcrown ")]) == 3


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--onnx_path" in capsys.readouterr().out


def test_an_internal_fault_is_one_line_and_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr("complete_verifier.driver.instance.FileReader", broken)
    done = run(capsys, tmp_path, SMALL.write(tmp_path, -20.0))
    assert (done.code, done.results) == (1, None)
    assert done.err.count("\n") == 1 and "internal error: KeyError" in done.err


# -- lists ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A list of five rows: unsat, sat, a broken file, a property of another network, unsat."""
    SMALL.write(tmp_path, -20.0)
    (tmp_path / "sat.vnnlib").write_text(SMALL.text(+0.1))
    (tmp_path / "broken.onnx").write_text("no network")
    onnx.save(mlp_model(dense_layers([3, 4, 1], 0)), tmp_path / "other.onnx")
    names = ["net.onnx,prop", "net.onnx,sat", "broken.onnx,prop", "other.onnx,prop", "net.onnx,prop"]
    (tmp_path / "instances.csv").write_text("".join(f"{name}.vnnlib,60\n" for name in names))
    (tmp_path / "config.yaml").write_text("general: {csv_name: instances.csv}\n")
    return tmp_path


def list_flags(folder: Path, *more: str) -> list[str]:
    files = ["--results_file", str(folder / "r.csv"), "--stats_file", str(folder / "s.json")]
    return ["--root_path", str(folder), *files, *COMMON, "--pgd_steps", "10", *more]


def test_a_list_goes_on_after_broken_rows(benchmark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pickled = benchmark / "r.pkl"
    assert main(list_flags(benchmark, "--save_output", "--output_file", str(pickled))) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 2 and "broken.onnx" in printed.err and "the network has 3" in printed.err
    rows = read_table(benchmark / "r.csv")
    assert [row.verdict for row in rows] == ["unsat", "sat", "error", "error", "unsat"]
    assert [row.status for row in rows] == [
        "safe-incomplete", "unsafe-pgd", "unknown-error", "unknown-error", "safe-incomplete"
    ]  # fmt: skip
    assert (rows[0].onnx, rows[0].vnnlib, rows[1].vnnlib) == ("net.onnx", "prop.vnnlib", "sat.vnnlib")
    content = pickle.loads(pickled.read_bytes())  # upstream's, on request
    assert content["summary"] == {"safe-incomplete": [0, 4], "unsafe-pgd": [1], "unknown-error": [2, 3]}
    assert [status for status, _ in content["results"]] == [row.status for row in rows] and content["bab_ret"] == []
    verdicts = [row["verdict"] for row in json.loads((benchmark / "s.json").read_text())["instances"]]
    assert verdicts == ["unsat", "sat", None, None, "unsat"]
    for line in (
        "############# Summary #############",
        "Final verified acc: 40.0% (total 5 examples)",
        "total verified (safe/unsat): 2 , total falsified (unsafe/sat): 1 , timeout: 2",
        "safe-incomplete (total 2), index: [0, 4]",
        "idx: 3, vnnlib ID: 3",
    ):
        assert line in printed.out


@pytest.mark.parametrize(
    ("flags", "indices"),
    [(("--start", "1", "--end", "2"), [1]), (("--select_instance", "4", "0"), [4, 0]), (("--start", "4"), [4])],
)
def test_part_of_a_list(benchmark: Path, flags: tuple[str, ...], indices: list[int]) -> None:
    chosen = listed_instances(load_config(list_flags(benchmark, *flags)).config)
    assert [instance.index for instance in chosen] == indices


def test_the_third_column_is_the_timeout(benchmark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list_flags(benchmark, "--end", "1", "--timeout", "7", "--timeout_scale", "0.5")) == 0
    assert json.loads((benchmark / "s.json").read_text())["instances"][0]["timeout_s"] == 30.0
    config = load_config(list_flags(benchmark, "--override_timeout", "11")).config
    assert timeout_seconds(config, 60.0) == 11.0


# -- ends from outside ------------------------------------------------------------------------------------------------
def command(folder: Path, files: tuple[str, str], *flags: str) -> list[str]:
    words = ["--onnx_path", files[0], "--vnnlib_path", files[1], "--results_file", str(folder / "r.txt")]
    return [sys.executable, "-m", "complete_verifier", *words, *COMMON, "--pgd_order", "skip", *flags]


@pytest.mark.parametrize("moment", ["Configurations:", "BaB round"])
def test_sigterm_writes_what_is_known(tmp_path: Path, moment: str) -> None:
    """At the very start (libraries are being imported) and within the search."""
    line = command(tmp_path, hopeless(tmp_path), "--timeout", "100", "--init_iteration", "2")
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while not (text := process.stdout.readline()).startswith(moment):
            assert text, "ended too early"
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == ""
    assert (tmp_path / "r.txt").read_text() == "unknown"
    assert time.monotonic() - began < 10


def test_sigterm_ends_a_list_and_the_row_at_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row that was cut short is none: the list would not run it again."""
    hopeless(tmp_path)
    (tmp_path / "instances.csv").write_text("net.onnx,prop.vnnlib,60\n" * 3)
    (tmp_path / "config.yaml").write_text("general: {csv_name: instances.csv}\n")
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert main(list_flags(tmp_path, "--pgd_order", "skip", "--init_iteration", "2")) == 128 + signal.SIGTERM
    assert read_table(tmp_path / "r.csv") == []
    assert "ended by SIGTERM: 3 of 3 rows are missing" in capsys.readouterr().out


def test_the_deadline_counts_from_the_start_of_the_process(tmp_path: Path) -> None:
    """A limit that the imports alone use up: still a verdict, and in time."""
    line = command(tmp_path, hopeless(tmp_path), "--timeout", "0.5", "--stats_file", str(tmp_path / "s.json"))
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    # the process ends when its work does: taking libraries down must not use up what the deadline allows
    stats = json.loads((tmp_path / "s.json").read_text())
    assert stats["verdict"] == "timeout" and stats["timeout_s"] == 0.5
    assert (tmp_path / "r.txt").read_text() == "timeout"
    assert "Result: timeout" in done.stdout


def test_files_of_a_run_that_ends_well_stay_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing but the named files is left; no temporary one."""
    files = write(tmp_path, mlp_model(SMALL.layers), SMALL.text(-20.0))
    run(capsys, tmp_path, files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "prop.vnnlib", "results.txt", "stats.json"]
