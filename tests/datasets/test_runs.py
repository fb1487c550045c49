"""Runs over examples of a data set: the same verdicts as VNN-LIB files of the same question, and as sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from complete_verifier.datasets import dataset_from_loader
from complete_verifier.spec.writer import print_vnnlib
from tests.datasets.makers import Case, run
from tests.end_to_end.runs import run as run_file
from tests.nets import run_mlp

VERDICT = {"safe": "unsat", "safe-incomplete": "unsat", "unsafe-pgd": "sat", "unsafe-bab": "sat"}


def margins(case: Case, index: int, points: np.ndarray) -> np.ndarray:
    """Least margin of each point of one example."""
    y = run_mlp(case.layers)(torch.from_numpy(points)).numpy()
    label = case.labels[index]
    rivals = [j for j in range(3) if j != label]
    return (y[:, [label]] - y[:, rivals]).min(1)


# The range of the data: wide enough not to cut the regions.
WIDE: dict[str, Any] = {"data_min": np.full((1, 5), -9, np.float32), "data_max": np.full((1, 5), 9, np.float32)}


@pytest.mark.parametrize("eps", [0.05, 0.7])
@pytest.mark.parametrize("kind", ["verified-acc", "specify-target"])
def test_verdicts_are_those_of_the_same_question_as_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, eps: float, kind: Any
) -> None:
    case = Case.make(tmp_path, eps=eps, **WIDE)
    ran = run(capsys, case, specification__robustness_type=kind)
    assert ran.code == 0 and sorted(ran.statuses) == [0, 1, 2, 3]
    stored = np.load(tmp_path / "data.npz")
    data = dataset_from_loader(dict(stored), norm=np.inf, radius=None, source="data")
    for index, status in ran.statuses.items():
        spec = data.property(index, kind, n_outputs=3, threshold=0.0, boxes=False)
        (tmp_path / "p.vnnlib").write_text(print_vnnlib(spec))
        files = str(tmp_path / "net.onnx"), str(tmp_path / "p.vnnlib")
        other = run_file(capsys, tmp_path, files, "--pgd_restarts", "5", "--pgd_steps", "20")
        assert VERDICT[status] == other.word, (index, status)
    counterexamples = sum(VERDICT[status] == "sat" for status in ran.statuses.values())
    assert kind != "verified-acc" or counterexamples == (1 if eps < 0.1 else 4)


def test_a_verified_example_has_no_violation_among_samples(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    case = Case.make(tmp_path, eps=0.1, n=6)
    ran = run(capsys, case)
    safe = [i for i, status in ran.statuses.items() if status.startswith("safe")]
    assert safe
    rng = np.random.default_rng(0)
    for index in safe:
        noise = rng.choice([-0.1, 0.1], (4000, 5)) * rng.uniform(0.5, 1, (4000, 1))
        assert margins(case, index, np.clip(case.x[index].astype(float) + noise, 0, 1)).min() > 0


def test_a_misclassified_example_is_counted_and_never_verified(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case = Case.make(tmp_path, eps=0.001)
    ran = run(capsys, case, attack__pgd_order="skip", general__complete_verifier="skip")
    assert ran.statuses[1] == "unsafe-pgd"
    assert "misclassifies" in ran.out
    assert "Final verified acc: 75.0% (total 4 examples)" in ran.out
    assert "total falsified (unsafe/sat): 1 ," in ran.out


@pytest.mark.parametrize("norm", [1, 2])
def test_balls_are_decided_to_the_end(capsys: pytest.CaptureFixture[str], tmp_path: Path, norm: int) -> None:
    """A ball is smaller than its box: what the box cannot have, the ball may."""
    eps = {1: 0.5, 2: 0.4}[norm]
    case = Case.make(tmp_path, eps=eps, n=6, **WIDE)
    ball = run(capsys, case, specification__norm=norm)
    box = run(capsys, case, attack__pgd_order="skip", general__complete_verifier="skip")
    assert ball.statuses[1].startswith("unsafe")
    safe = {i for i, status in ball.statuses.items() if status.startswith("safe")}
    assert safe > {i for i, status in box.statuses.items() if status.startswith("safe")}
    rng = np.random.default_rng(0)
    for index in safe:
        noise = rng.normal(size=(4000, 5)) if norm == 2 else rng.laplace(size=(4000, 5))
        noise *= eps / np.linalg.norm(noise, ord=norm, axis=1, keepdims=True)
        assert margins(case, index, case.x[index].astype(float) + noise).min() > 0


def test_a_threshold_is_part_of_the_question(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    case = Case.make(tmp_path, eps=0.0)
    exact = [margins(case, i, case.x[i : i + 1].astype(float))[0] for i in range(4)]
    for threshold in (-10.0, float(np.median(exact)), 10.0):
        ran = run(capsys, case, bab__decision_thresh=threshold)
        wanted = ["unsat" if margin > threshold else "sat" for margin in exact]
        assert [VERDICT[ran.statuses[i]] for i in range(4)] == wanted


def test_boxes_of_the_loader(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    case = Case.make(tmp_path)
    lower, upper = case.x - np.float32(0.01), case.x + np.float32(0.02)
    case = Case.make(tmp_path, data_min=lower, data_max=upper, eps=np.float64(9.0))  # no radius acts on a box
    ran = run(capsys, case, specification__type="box")
    assert [VERDICT[ran.statuses[i]] for i in range(4)] == ["unsat", "sat", "unsat", "unsat"]


def test_which_examples_are_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    case = Case.make(tmp_path, n=6, eps=0.001)
    quick: dict[str, Any] = {"attack__pgd_order": "skip", "general__complete_verifier": "skip"}
    (tmp_path / "ids.txt").write_text("5 3\n1,0")
    choices: list[tuple[dict[str, Any], list[int]]] = [
        ({"data__start": 4}, [4, 5]),
        ({"data__start": 1, "data__end": 3}, [1, 2]),
        ({"data__select_instance": [3, 0]}, [0, 3]),
        ({"data__data_idx_file": str(tmp_path / "ids.txt"), "data__end": 2}, [3, 5]),
    ]
    for settings, wanted in choices:
        assert sorted(run(capsys, case, **quick, **settings).statuses) == wanted


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "clean-acc": ({"specification__robustness_type": "clean-acc"}, "asks nothing about a region"),
    "outputs": ({"data__num_outputs": 4}, "three outputs"),
    "start": ({"data__start": 9}, "data.start = 9"),
    "missing": ({"data__dataset": 'Customized("nowhere.py", "data")'}, "nowhere.py: no such file"),
    "broken": ({"data__dataset": 'Customized("loader.py", "broken")'}, "broken fails: RuntimeError: out of luck"),
    "name": ({"data__dataset": "IMAGENET"}, "data.dataset = IMAGENET: unknown"),
    "no files": ({"data__dataset": "MNIST"}, "nothing is downloaded"),
    "two networks": ({"model__name": "resnet2b"}, "both name a network"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    settings, message = BAD[name]
    ran = run(capsys, Case.make(tmp_path), **settings)
    assert ran.code == 2 and message in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_settings_of_examples_are_refused_beside_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    case = Case.make(tmp_path)
    for flag, value in (("--epsilon", "0.1"), ("--norm", "2"), ("--decision_thresh", "1")):
        ran = run(capsys, case, ["--vnnlib_path", "p.vnnlib", flag, value])
        assert ran.code == 2 and "speaks of examples of a data set" in ran.err
