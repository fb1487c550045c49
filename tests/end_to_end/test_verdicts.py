"""Verdicts of whole runs, each on a network whose exact answer a MILP or the construction knows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest

from complete_verifier.incomplete.settings import Method
from complete_verifier.spec.compile import read_vnnlib
from complete_verifier.spec.counterexample import check_printed
from tests.end_to_end.runs import Hard, hopeless, mlp_model, property_text, run, write
from tests.nets import dense_layers

SMALL = Hard.make([3, 12, 12, 2], seed=3)
FEW = ("--init_iteration", "10", "--iteration", "10")  # enough for nets of this size


def check_counterexample(results: str, network: str, specification: str) -> None:
    """Independent of the run: the printed text against the property, outputs by onnxruntime."""
    word, _, text = results.partition("\n")
    assert word == "sat"
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    check = check_printed(
        read_vnnlib(specification), text, lambda x: session.run(None, {name: x.astype(np.float32)[None]})[0]
    )
    assert check, check.reason


def test_easy_unsat_is_proved_by_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, tmp_path, SMALL.write(tmp_path, -20.0))
    assert (done.code, done.results, done.err) == (0, "unsat", "")
    assert "Result: unsat" in done.out and "Verified with initial CROWN!" in done.out
    assert done.stats["status"] == "safe-incomplete" and done.stats["bab"]["rounds"] == 0


def test_hard_unsat_is_proved_by_branch_and_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, tmp_path, SMALL.write(tmp_path, -0.02), "--pgd_steps", "5", *FEW)
    assert (done.code, done.results) == (0, "unsat")
    assert done.stats["status"] == "safe" and done.stats["bab"]["rounds"] > 0
    assert done.stats["stopped_by"] == "all domains closed"


@pytest.mark.parametrize("order", ["before", "middle", "after"])
def test_sat_comes_with_a_counterexample(tmp_path: Path, capsys: pytest.CaptureFixture[str], order: str) -> None:
    files = SMALL.write(tmp_path, +0.05)
    cex = tmp_path / "sub" / "cex.txt"
    done = run(capsys, tmp_path, files, "--pgd_order", order, "--save_adv_example", "--cex_path", str(cex))
    assert done.code == 0 and done.results is not None
    check_counterexample(done.results, *files)
    assert done.results == f"sat\n{cex.read_text()}"
    assert done.stats["status"] == "unsafe-pgd" and "PGD attack succeeded!" in done.out


def test_sat_without_an_attack_is_never_unsat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = SMALL.write(tmp_path, +0.03)
    done = run(capsys, tmp_path, files, "--pgd_order", "skip", *FEW)
    assert done.word in ("sat", "unknown")
    if done.word == "sat":
        assert done.results is not None
        check_counterexample(done.results, *files)


def test_a_round_limit_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A peer says unsat here, with domains open (wrong answer 5 of those seen)."""
    for margin in (-0.01, +0.01):
        done = run(
            capsys, tmp_path, SMALL.write(tmp_path, margin), "--pgd_order", "skip", "--max_iterations", "1", *FEW
        )
        assert (done.code, done.results) == (0, "unknown")
        assert "Result: unknown" in done.out and done.stats["bab"]["rounds"] == 1


def test_without_a_complete_verifier_open_clauses_are_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(
        capsys, tmp_path, SMALL.write(tmp_path, -0.01), "--pgd_order", "skip", "--complete_verifier", "skip", *FEW
    )
    assert (done.code, done.results) == (0, "unknown")


def test_the_deadline_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Far too many splits for the time, the threshold next to the least value seen."""
    files = hopeless(tmp_path)
    began = time.monotonic()
    done = run(capsys, tmp_path, files, "--pgd_order", "skip", "--timeout", "3", "--init_iteration", "5")
    assert time.monotonic() - began < 5.0
    assert (done.code, done.results) == (0, "timeout")
    assert done.stats["wall_s"] < 5.0 and done.stats["bab"]["domains_visited"] > 0


def test_one_open_clause_keeps_the_verdict_from_unsat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two clauses, the first one impossible; the second one is met by some input."""
    n_out = len(SMALL.layers[-1].bias)
    first, second = (
        [([1.0] + [0.0] * (n_out - 1), SMALL.least - 20)],
        [([1.0] + [0.0] * (n_out - 1), SMALL.least + 0.05)],
    )
    text = property_text(SMALL.lower, SMALL.upper, n_out, [first, second])
    files = write(tmp_path, mlp_model(SMALL.layers), text)
    done = run(capsys, tmp_path, files)
    assert done.word == "sat" and done.results is not None
    check_counterexample(done.results, *files)
    done = run(capsys, tmp_path, files, "--pgd_order", "skip", "--complete_verifier", "skip")
    assert done.word == "unknown" and "1 / 2 OR specs are verified." in done.out


def test_every_region_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two boxes; a counterexample lies in the second one only."""
    layers = dense_layers([2, 6, 1], seed=5)
    lines = ["(declare-const X_0 Real)", "(declare-const X_1 Real)", "(declare-const Y_0 Real)"]
    grid = np.stack(np.meshgrid(np.linspace(1, 2, 101), np.linspace(1, 2, 101)), -1).reshape(-1, 2)
    value = np.maximum(grid @ layers[0].weight.numpy().T + layers[0].bias.numpy(), 0)
    least = float((value @ layers[1].weight.numpy().T + layers[1].bias.numpy()).min())
    far = "(and (>= X_0 -0.01) (<= X_0 0.01) (>= X_1 -0.01) (<= X_1 0.01) (<= Y_0 -50.0))"
    near = f"(and (>= X_0 1.0) (<= X_0 2.0) (>= X_1 1.0) (<= X_1 2.0) (<= Y_0 {least + 0.01:.6f}))"
    files = write(tmp_path, mlp_model(layers), "\n".join([*lines, f"(assert (or {far} {near}))"]) + "\n")
    done = run(capsys, tmp_path, files)
    assert done.word == "sat" and "2 clauses in 2 regions" in done.out
    assert done.results is not None
    check_counterexample(done.results, *files)
    assert run(capsys, tmp_path, files, "--pgd_order", "skip", "--complete_verifier", "skip").word == "unknown"


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    """The bound reported before branch and bound never passes the exact least value, and proves what it can."""
    files = SMALL.write(tmp_path, -20.0)
    done = run(capsys, tmp_path, files, "--bound_prop_method", method, "--pgd_order", "skip")
    (bound,) = done.stats["bounds"]["lower"]
    assert bound <= SMALL.least + 1e-5
    assert done.word == "unsat"


def test_float64(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = SMALL.write(tmp_path, -0.02)
    done = run(capsys, tmp_path, files, "--double_fp", "--pgd_steps", "5", *FEW)
    assert done.word == "unsat"
    assert SMALL.least + 1e-9 >= done.stats["bounds"]["lower"][0]
