"""Wrong answer 8: Clip's constants, unknown activation options and unknown operators silently passed over."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from auto_LiRPA.bound_options import BoundOptions
from auto_LiRPA.errors import ConfigError, UnsupportedOperator
from auto_LiRPA.operators.activation import SLOPE_RULES
from auto_LiRPA.values import Box
from tests.end_to_end.runs import property_text, run, write
from tests.graph.single import model, node, read
from tests.regressions.bounding import METHODS, PLAIN, bound

CLIPS = {
    "both": (-0.25, 0.5),
    "only low": (-0.25, None),
    "only high": (None, 0.5),
    "one side of 0": (0.125, 0.75),
    "a point": (0.25, 0.25),
    "relu6": (0.0, 6.0),
}


@pytest.mark.parametrize("opset", [10, 13])
@pytest.mark.parametrize("name", sorted(CLIPS))
def test_clip_clips_where_it_says(name: str, opset: int) -> None:
    """Limits as attributes (to opset 10) and as inputs: values, and bounds by every method, respect both."""
    low, high = CLIPS[name]
    limits = {k: float(v) for k, v in (("min", low), ("max", high)) if v is not None}
    constants: dict[str, Any] = {"w": np.diag([1.0, -2.0, 8.0]).astype(np.float32)}
    if opset < 11:
        clip = node("Clip", "x", "t", **limits)
    else:
        clip = node("Clip", f"x {'min' if 'min' in limits else '-'} {'max' if 'max' in limits else '-'}", "t")
        constants |= {k: np.float32(v) for k, v in limits.items()}
    graph = read(model([clip, node("MatMul", "t w")], ["N", 3], constants, opset=opset))
    x = torch.linspace(-9, 9, 500).unsqueeze(1).expand(-1, 3)
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    y = x.clamp(*ends) * torch.tensor([1.0, -2.0, 8.0])
    values = graph.nodes[1].op.forward(x)
    assert torch.equal(values, x.clamp(*ends))
    for method in METHODS:
        lower, upper = bound(graph, Box(torch.full((1, 3), -9.0), torch.full((1, 3), 9.0)), method, PLAIN)
        assert bool((lower[0] <= y.amin(0) + 1e-5).all() & (upper[0] >= y.amax(0) - 1e-5).all()), method
        if low is not None and high is not None and method.value in ("IBP", "CROWN-IBP"):
            # the limits act: no line of slope 1 as if there were none
            assert float(upper[0, 0]) <= high + 2e-5 + (0 if method.value == "IBP" else 9)


def test_clip_changes_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``y = clip(x, -0.5, 0.5)``: y <= -0.6 is impossible, y <= -0.4 is not; without its limits both would be sat."""
    nodes = [node("Clip", "x a b", "t"), node("MatMul", "t w")]
    constants = {"a": np.float32(-0.5), "b": np.float32(0.5), "w": np.eye(1, dtype=np.float32)}
    for limit, word in ((-0.6, "unsat"), (-0.4, "sat")):
        text = property_text(np.array([-1.0]), np.array([1.0]), 1, [[([1.0], limit)]])
        assert run(capsys, tmp_path, write(tmp_path, model(nodes, ["N", 1], constants), text)).word == word


@pytest.mark.parametrize("option", ["adaptve", "relu", "", None, 1, "Adaptive"])
def test_unknown_activation_options_are_refused(option: object) -> None:
    with pytest.raises(ConfigError, match="activation_bound_option") as caught:
        BoundOptions().updated({"activation_bound_option": option})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", SLOPE_RULES)
def test_known_activation_options_act(rule: str) -> None:
    """Each rule gives the bound that its line gives: one ReLU over [-1, 2] and over [-2, 1], from below."""
    last = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        last.weight.copy_(torch.eye(2))
    net = torch.nn.Sequential(torch.nn.ReLU(), last)
    low, high = torch.tensor([[-1.0, -2.0]]), torch.tensor([[2.0, 1.0]])
    opts = {"activation_bound_option": rule, "compare_crown_with_ibp": False}
    bounded = BoundedModule(net, torch.zeros(1, 2), bound_opts=opts)
    x = BoundedTensor((low + high) / 2, PerturbationLpNorm(x_L=low, x_U=high))
    lower, upper = bounded.compute_bounds(x=(x,), method="CROWN")
    expected = {
        "adaptive": [-1.0, 0.0],
        "same-slope": [-2 / 3, -2 / 3],
        "zero-lb": [0.0, 0.0],
        "one-lb": [-1.0, -2.0],
        "reversed-adaptive": [-1.0, 0.0],  # as upstream, which knows the name and treats it as adaptive
    }[rule]
    assert torch.allclose(lower, torch.tensor([expected]), atol=1e-6)
    assert torch.allclose(upper, high, atol=1e-6)


def test_unknown_options_of_any_kind_are_refused() -> None:
    for raw in ({"activation_bound_opton": "adaptive"}, {"optimize_bound_args": {"iteratoin": 3}}):
        with pytest.raises(ConfigError, match="no such option; perhaps"):
            BoundOptions().updated(raw)


@pytest.mark.parametrize("where", ["first", "in the middle", "in a branch that is summed"])
@pytest.mark.parametrize("op", ["Mish", "Det", "NotAnOperator", "Hardmax"])
def test_unknown_operators_end_the_load(op: str, where: str) -> None:
    """One line with the node, its operator and what to do: never taken for the identity."""
    nodes = {
        "first": [node(op, "x", "t"), node("Relu", "t")],
        "in the middle": [node("Relu", "x", "r"), node(op, "r", "t"), node("Relu", "t")],
        "in a branch that is summed": [node(op, "x", "t"), node("Relu", "x", "r"), node("Add", "r t")],
    }[where]
    with pytest.raises(UnsupportedOperator, match=op) as caught:
        read(model(nodes, ["N", 3], opset=18))
    assert "\n" not in str(caught.value) and "the_t" in str(caught.value)


def test_unknown_operators_give_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto = model([node("Mish", "x", "t"), node("Relu", "t")], ["N", 1], opset=18)
    files = write(tmp_path, proto, property_text(np.array([-1.0]), np.array([1.0]), 1, [[([1.0], -1.0)]]))
    done = run(capsys, tmp_path, files)
    assert (done.code, done.results) == (2, None)
    assert "Mish" in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize(("key", "value"), [("activation_bound_option", "magic"), ("conv_mode", "magic")])
def test_unknown_choices_on_the_command_line_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    files = write(
        tmp_path,
        model([node("Relu", "x")], ["N", 1]),
        property_text(np.array([-1.0]), np.array([1.0]), 1, [[([1.0], -1.0)]]),
    )
    done = run(capsys, tmp_path, files, f"--{key}", value)
    assert (done.code, done.results) == (2, None)
    assert key in done.err and "Traceback" not in done.err
