"""Experiment 8's networks and questions: the file is the module, training's intervals hold, checks can fail."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from auto_LiRPA.values import Box
from benchmarks.parallel import resnets
from benchmarks.parallel.experiments import exp8
from benchmarks.parallel.resnet_points import vnnlib
from complete_verifier.config import load_config
from complete_verifier.driver.choices import bab_settings, bound_settings, incomplete_settings
from complete_verifier.spec.compile import read_vnnlib
from tests.support import ROOT

SMALL = replace(resnets.SIZES["reduced large"], blocks=2, width=3)


def _net(size: resnets.Size = SMALL) -> torch.nn.Sequential:
    """Untrained, with biases, so that a bias that is lost shows."""
    net = resnets.build(size, 3)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.linspace(-0.2, 0.3, len(parameter)))
    return net.eval()


def test_the_file_computes_what_the_module_does(tmp_path: Path) -> None:
    net, path = _net(), tmp_path / "net.onnx"
    resnets.export(net, SMALL, path)
    kinds = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert kinds == {"Conv", "Relu", "Add", "Flatten", "Gemm", "Identity"}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    x = torch.rand(5, 3, SMALL.image, SMALL.image, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = net(x)
    found = torch.cat([torch.from_numpy(session.run(None, {"X": one[None].numpy()})[0]) for one in x])
    assert wanted.std(0).min() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_large_network_has_the_papers_weights() -> None:
    assert 94 < resnets.weight_bytes(resnets.build(resnets.SIZES["large"], 0)) / 2**20 < 97


def test_values_neither_vanish_nor_grow_before_training() -> None:
    size = replace(SMALL, stages=3, image=16)
    with torch.no_grad():
        y = resnets.build(size, 0)(resnets.patterns(size, 0))
    assert 1e-3 < float(y.std(0).mean()) < 1.0


def test_patterns_are_far_apart_and_the_same_for_a_seed() -> None:
    size = resnets.SIZES["large"]
    images = resnets.patterns(size, 0)
    assert torch.equal(images, resnets.patterns(size, 0)) and not torch.equal(images, resnets.patterns(size, 1))
    assert images.shape == (100, 3, 32, 32)
    apart = torch.cdist(images.flatten(1), images.flatten(1), p=1) + torch.eye(100) * 1e9
    assert apart.min() > 0.6 * 64 * 8  # at least eight cells of 64 pixels differ


def test_the_intervals_of_the_training_hold() -> None:
    net, eps = _net(), 0.03
    x = resnets.patterns(SMALL, 0)
    label = torch.arange(SMALL.classes)
    *body, last = net
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        values = resnets.Intervals(x, eps)
        for module in body:
            values.map(module)
        worst = values.margins(last, label)
        gen = torch.Generator().manual_seed(1)
        most = torch.full_like(worst, -torch.inf)
        for _ in range(60):
            y = net(x + eps * (2 * torch.rand(x.shape, generator=gen).round() - 1))
            most = torch.maximum(most, y - y[label, label].unsqueeze(1))
    assert (most <= worst + 1e-5).all() and torch.equal(worst[label, label], torch.zeros(SMALL.classes))
    assert (worst - most).amax() < 1.0  # and they say something


def test_the_property(tmp_path: Path) -> None:
    box = Box(torch.tensor([[[[0.1, 0.2]]]]), torch.tensor([[[[0.3, 0.25]]]]))
    path = tmp_path / "p.vnnlib"
    path.write_text(vnnlib(box, 1, 4))
    found = read_vnnlib(path)
    (region,) = found.regions
    assert found.n_inputs == 2 and found.n_outputs == 4 and len(region.clauses) == 3
    for side, wanted in zip(region.box.outward(), (box.lower, box.upper), strict=True):
        torch.testing.assert_close(torch.from_numpy(side), wanted.flatten())
    inside, outside = [0.2, 0.22], [0.2, 0.26]
    assert not found.violated_by(inside, [0.0, 1.0, 0.5, 0.9])
    for other in (0, 2, 3):
        y = [0.0, 1.0, 0.0, 0.0]
        y[other] = 1.5
        assert found.violated_by(inside, y) and not found.violated_by(outside, y)


@pytest.mark.parametrize("net", exp8.NETS)
def test_configurations_have_the_papers_settings(net: str) -> None:
    config = load_config(["--config", str(ROOT / "exp_configs" / "parallel" / f"exp8_resnet_{net}.yaml")]).config
    rounds, alpha = bab_settings(config), bound_settings(config).alpha
    assert (alpha.mode, alpha.iterations, alpha.lr_alpha) == ("keep", 20, 0.25)
    assert (rounds.batch_size, rounds.max_iterations, rounds.iterations) == (64, 5, 10)
    assert (rounds.lr_alpha, rounds.lr_beta, rounds.method, rounds.candidates) == (0.1, 0.2, "kfsb", 7)
    assert rounds.reduceop == "max" and rounds.synchronous and not rounds.pruning_in_iteration
    assert not rounds.auto_enlarge and config.attack.pgd_order == "skip" and config.bab.timeout == 600
    assert not incomplete_settings(config, 600.0).prune_after_crown


# -- the checks can fail --------------------------------------------------------------------------------------------
def _figure(mode: str, world: int, **changes: Any) -> dict[str, Any]:
    rank = {"live_blocks_max": 2, "domains_mib": 0.0, "stored_mib": 4.0, "gathered_mib": 0.0, "weight_mib": 10.0,
            "row_state_mib": {"slopes": 1.0, "moments": 2.0, "bounds of neurons": 1.0}}  # fmt: skip
    figure = {
        "what": "resnet_modes", "exp": 8, "net": "large", "mode": mode, "world": world, "verdict": "unsat",
        "by": "alpha-CROWN", "digests": ["a"], "domains": 0, "rounds": 0, "worst_margin": 0.1, "worst_bound": None,
        "weight_mib": 10.0, "rows": 99, "proved": 99, "ms": 1.0, "traffic_share": 0.0,
        "ranks": [copy.deepcopy(rank) for _ in range(world)],
    }  # fmt: skip
    return {**figure, **changes}


MADE = {"what": "resnet_made", "net": "large", "question": {"crown": -0.1, "sampled": 0.2}, "trained": {"awake": 0.9}}
FAULTS = [
    ("fsdp", {"weight_mib": 5.1}, 0, 0),
    ("fsdp", {"weight_mib": 9.0}, 0, 1),
    ("fsdp", {"weight_mib": 5.1, "digests": ["a", "b"]}, 1, 0),
    ("fsdp", {"weight_mib": 5.1, "verdict": "unknown"}, 1, 0),
    ("rows", {}, 0, 1),
    ("domains", {"by": "round limit 5"}, 1, 0),
]


@pytest.mark.parametrize(("mode", "changes", "broken", "missed"), FAULTS)
def test_a_check_can_fail(mode: str, changes: dict[str, Any], broken: int, missed: int) -> None:
    checks = list(exp8.checks([MADE, _figure("single", 1), _figure(mode, 2, **changes)]))
    failed = [check for check in checks if check.met is False]
    assert (sum(not c.goal for c in failed), sum(c.goal for c in failed)) == (broken, missed)


@pytest.mark.parametrize("question", [{"crown": 0.1, "sampled": 0.2}, {"crown": -0.1, "sampled": -0.2}])
def test_a_question_that_is_none_is_told(question: dict[str, float]) -> None:
    assert [check.met for check in exp8.checks([{**MADE, "question": question}])].count(False) == 1
