"""The committed network and properties: one really holds, one really fails, and the script that shows them is honest.

Nothing here uses the verifier: interval arithmetic written for this test proves, onnxruntime refutes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from tests.support import ROOT

FOLDER = ROOT / "quickstart"
LABEL = 7  # of both images


def _box(name: str) -> tuple[Tensor, Tensor]:
    """Input box of a property file, read with a regular expression: two [1, 1, 8, 8] in float64."""
    text = (FOLDER / f"{name}.vnnlib").read_text()
    sides = []
    for sign in (">=", "<="):
        values = {int(i): float(v) for i, v in re.findall(rf"\(assert \({sign} X_(\d+) (\S+)\)\)", text)}
        assert sorted(values) == list(range(64))
        sides.append(torch.tensor([values[i] for i in range(64)], dtype=torch.float64).view(1, 1, 8, 8))
    return sides[0], sides[1]


def _interval_scores(lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of the scores over the box, node by node through the ONNX file, in float64: two [10]."""
    graph = onnx.load(FOLDER / "digits.onnx").graph
    weights = {w.name: torch.tensor(numpy_helper.to_array(w).astype(np.float64)) for w in graph.initializer}
    for node in graph.node:
        facts = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Relu":
            lo, hi = lo.clamp_min(0), hi.clamp_min(0)
        elif node.op_type == "Flatten":
            lo, hi = lo.flatten(1), hi.flatten(1)
        else:
            weight, bias = (weights[name] for name in node.input[1:])
            up, down = weight.clamp_min(0), weight.clamp_max(0)
            if node.op_type == "Conv":
                apply = partial(F.conv2d, stride=facts["strides"], padding=facts["pads"][:2])
                bias = bias.view(-1, 1, 1)
            else:
                assert node.op_type == "Gemm" and facts["transB"] == 1
                apply = partial(F.linear)
            lo, hi = (
                apply(lo, up) + apply(hi, down) + bias,
                apply(hi, up) + apply(lo, down) + bias,
            )
    return lo[0], hi[0]


def _scores(images: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(FOLDER / "digits.onnx"), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": images.float().numpy()})
    return scores


def _attacked(name: str) -> Tensor:
    """A corner of the box that lowers the label's margin, by projected gradient descent on onnxruntime's own scores."""
    lo, hi = _box(name)
    step = torch.eye(64).view(64, 1, 8, 8) * 0.02
    image = (lo + hi) / 2
    for _ in range(20):
        scores = _scores(torch.cat([image, image + step]))
        margins = scores[:, LABEL] - np.delete(scores, LABEL, axis=1).max(1)
        image = torch.where(torch.tensor(margins[1:] < margins[0]).view(1, 1, 8, 8), image + 0.02, image - 0.02)
        image = torch.minimum(torch.maximum(image, lo), hi)
    return image


def test_the_robust_property_holds_by_intervals_alone() -> None:
    lo, hi = _interval_scores(*_box("robust"))
    assert lo[LABEL] > hi[torch.arange(10) != LABEL].max() + 0.1


def test_the_interval_proof_contains_what_the_network_does() -> None:
    """Guards the proof above: sampled scores lie within the bounds, and the bounds are not vacuous."""
    lo, hi = _box("fragile")
    scores = torch.tensor(_scores(lo + (hi - lo) * torch.rand(500, 1, 8, 8, dtype=torch.float64)))
    below, above = _interval_scores(lo, hi)
    assert (below - 1e-4 <= scores).all() and (scores <= above + 1e-4).all()
    assert above[LABEL] - below[LABEL] < 40


def test_the_fragile_property_has_a_counterexample() -> None:
    lo, hi = _box("fragile")
    assert _scores((lo + hi) / 2).argmax() == LABEL
    assert _scores(_attacked("fragile")).argmax() != LABEL
    assert _scores(_attacked("robust")).argmax() == LABEL


@pytest.mark.parametrize("name", ["robust", "fragile"])
def test_a_property_says_what_its_comments_say(name: str) -> None:
    text = (FOLDER / f"{name}.vnnlib").read_text()
    grey = [int(word) for row in re.findall(r"^; pixels (.*)$", text, re.M) for word in row.split()]
    image = torch.tensor(grey, dtype=torch.float64).view(1, 1, 8, 8) / 16
    lo, hi = _box(name)
    assert torch.allclose(lo, (image - 0.05).clamp(0, 1), atol=1e-12, rtol=0)
    assert torch.allclose(hi, (image + 0.05).clamp(0, 1), atol=1e-12, rtol=0)
    assert "; radius 0.05\n" in text and f"; label {LABEL}\n" in text
    compared = {tuple(map(int, pair)) for pair in re.findall(r"\(and \(>= Y_(\d+) Y_(\d+)\)\)", text)}
    assert compared == {(other, LABEL) for other in range(10) if other != LABEL}


@pytest.mark.parametrize("name", ["robust", "fragile"])
def test_a_configuration_names_files_that_exist(name: str) -> None:
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert (ROOT / config["model"]["onnx_path"]).is_file()
    assert (ROOT / config["specification"]["vnnlib_path"]) == FOLDER / f"{name}.vnnlib"
    assert config["general"]["results_file"] == f"out/{name}.txt"


def test_any_number_of_images_and_few_bytes() -> None:
    assert _scores(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert sum(file.stat().st_size for file in FOLDER.iterdir() if file.is_file()) < 2**20


def _show(tmp_path: Path, robust: str, fragile: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "robust.txt").write_text(robust)
    (tmp_path / "fragile.txt").write_text(fragile)
    script = [sys.executable, str(FOLDER / "show_counterexample.py")]
    options = ["--results", str(tmp_path), "--picture", str(tmp_path / "x.png")]
    return subprocess.run([*script, *options], capture_output=True, text=True)


def _as_results(image: Tensor) -> str:
    pairs = [f"(X_{i}  {float(value)!r})" for i, value in enumerate(image.flatten().float())]
    return "sat\n(" + "\n".join([*pairs, *(f"(Y_{j}  0.0)" for j in range(10))]) + ")\n"


def test_a_confirmed_counterexample_is_drawn(tmp_path: Path) -> None:
    done = _show(tmp_path, "unsat", _as_results(_attacked("fragile")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Proved:" in done.stdout and "Refuted:" in done.stdout
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("robust", "fragile", "message"),
    [
        ("timeout", "unsat", "'timeout' where a proof"),
        ("unsat", "unknown", "'unknown' where a counterexample"),
        ("unsat", "sat\n((X_0 0.1))", "1 of the 64 values"),
        ("unsat", "original", "does not confirm"),
        ("unsat", "outside", "does not confirm"),
    ],
)
def test_nothing_unconfirmed_is_claimed(tmp_path: Path, robust: str, fragile: str, message: str) -> None:
    lo, hi = _box("fragile")
    made = {"original": (lo + hi) / 2, "outside": torch.zeros_like(lo)}
    done = _show(tmp_path, robust, _as_results(made[fragile]) if fragile in made else fragile)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert "Refuted:" not in done.stdout
    assert not (tmp_path / "x.png").exists()
