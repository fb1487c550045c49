"""Instances with a known counterexample, the attack being off: whatever the time is enough for, never `unsat`."""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path

import pytest

from tests.end_to_end.runs import Run, run
from tests.support import ROOT, shared_dir

EXPECTED = ROOT.parent.joinpath("shared", "benchmarks", "expected.csv")
Key = tuple[str, str, str]  # family, network, property
# a few of each kind whose bounds and first rounds of search fit into the short time; more of them in `make soak`
QUICK: tuple[Key, ...] = (
    ("mnist_fc", "mnist-net_256x2", "prop_1_0.03"),
    ("mnist_fc", "mnist-net_256x4", "prop_1_0.03"),
    ("acasxu", "ACASXU_run2a_1_7_batch_2000", "prop_3"),
    ("acasxu", "ACASXU_run2a_5_3_batch_2000", "prop_2"),  # its best counterexample violates by 5e-5
    ("acasxu", "ACASXU_run2a_2_9_batch_2000", "prop_8"),  # several clauses of two rows
    ("collins_rul_cnn", "NN_rul_small_window_20", "robustness_2perturbations_delta5_epsilon10_w20"),
    ("collins_rul_cnn", "NN_rul_small_window_20", "if_then_7levels_w20"),
    ("reach_prob_density", "vdp", "vdp_3"),
    ("reach_prob_density", "gcas", "gcas_6"),
    ("rl_benchmarks", "lunarlander", "lunarlander_case_unsafe_20"),
)
SHORT_S, LONG_S = 3, 20


@lru_cache(maxsize=1)
def known_sat() -> tuple[Key, ...]:
    """All instances of the list whose counterexample is known; vision transformers need operators that come later."""
    if not EXPECTED.exists():
        return ()
    with EXPECTED.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["expected"] == "sat" and row["family"] != "vit"]
    return tuple((row["family"], Path(row["onnx"]).stem, Path(row["vnnlib"]).stem) for row in rows)


def sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: Key, seconds: int, *flags: str) -> Run:
    """One run without the attack; the verdict is checked."""
    family, network, specification = key
    folder = shared_dir("benchmarks", family)
    files = str(folder / "onnx" / f"{network}.onnx"), str(folder / "vnnlib" / f"{specification}.vnnlib")
    done = run(capsys, tmp_path, files, "--pgd_order", "skip", "--timeout", str(seconds), *flags)
    assert done.code == 0, done.err
    assert done.word in ("sat", "unknown", "timeout"), f"{key}: {done.word}, but a counterexample is known"
    return done


@pytest.mark.parametrize("key", QUICK, ids="-".join)
def test_a_few(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: Key) -> None:
    """Few iterations, so that bounds are there and the search has begun when the time ends."""
    shared_dir("benchmarks")
    assert key in known_sat(), "not an instance with a known counterexample"
    done = sweep(tmp_path, capsys, key, SHORT_S, "--init_iteration", "5", "--iteration", "10", "--batch_size", "64")
    assert done.stats["bounds"]["lower"], "nothing was bounded: the run says nothing"  # type: ignore[index]


@pytest.mark.soak
@pytest.mark.parametrize("key", known_sat() or [None], ids=lambda key: "-".join(key) if key else "none")
def test_all(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: Key | None) -> None:
    """Every one of them at the default settings, for longer."""
    shared_dir("benchmarks")
    assert key is not None and len(known_sat()) == 36
    sweep(tmp_path, capsys, key, LONG_S)


@pytest.mark.soak
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "forward", "forward+crown"])
@pytest.mark.parametrize("key", known_sat() or [None], ids=lambda key: "-".join(key) if key else "none")
def test_all_by_other_methods(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: Key | None, method: str
) -> None:
    """Bounds alone, by every other method."""
    shared_dir("benchmarks")
    assert key is not None
    sweep(tmp_path, capsys, key, LONG_S, "--bound_prop_method", method, "--complete_verifier", "skip")
