"""Every public benchmark network agrees with onnxruntime: one sample, and three at once against three single runs."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from auto_LiRPA.graph.module import load_onnx
from auto_LiRPA.graph.onnx_reader import read_onnx
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.store import LocalStore
from tests.support import ROOT, shared_dir

FAMILIES = (
    "acasxu", "collins_rul_cnn", "mnist_fc", "oval21", "reach_prob_density", "rl_benchmarks", "sri_resnet_a", "vit"
)  # fmt: skip
FOLDER = ROOT.parent / "shared" / "benchmarks"
NETS = sorted(str(p.relative_to(FOLDER)) for f in FAMILIES for p in (FOLDER / f / "onnx").glob("*.onnx"))


def runner(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", NETS or [pytest.param("none", marks=pytest.mark.skip("../shared/benchmarks missing"))])
def test_agrees_with_onnxruntime(name: str) -> None:
    path = shared_dir("benchmarks", *name.split("/"))
    session = runner(path)
    entry = session.get_inputs()[0]
    shape = [d if isinstance(d, int) else 1 for d in entry.shape]
    rng = np.random.default_rng(0)
    samples = [rng.random(shape, dtype=np.float32) for _ in range(3)]
    wanted = np.concatenate([session.run(None, {entry.name: s})[0] for s in samples])
    module = load_onnx(path)
    x = torch.from_numpy(np.concatenate(samples))
    for n in (1, 3):
        found = module(x[:n]).detach().numpy()
        assert found.shape == (n, *wanted.shape[1:])
        assert np.abs(found - wanted[:n]).max() <= 1e-5 * np.abs(wanted).max()
    graph = read_onnx(path, LocalStore())
    assert torch.equal(evaluate(graph, x), module(x).detach())
    assert graph.input_batched and graph.output_batched
    parameters = dict(module.state_dict())
    assert parameters and all(p.isfinite().all() for p in parameters.values())


def test_gzipped_file_is_the_same_network(tmp_path: Path) -> None:
    path = shared_dir("benchmarks", "acasxu", "onnx", "ACASXU_run2a_1_1_batch_2000.onnx")
    packed = tmp_path / "net.onnx.gz"
    with path.open("rb") as source, gzip.open(packed, "wb") as target:
        shutil.copyfileobj(source, target)
    x = torch.rand(2, 1, 1, 5)
    assert torch.equal(load_onnx(packed)(x), load_onnx(path)(x))
