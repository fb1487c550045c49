"""The attack on a GPU: the same answers, and a step never waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.onnx_reader import read_onnx
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.store import LocalStore
from complete_verifier.attack.descent import Descent
from complete_verifier.attack.pgd import attack
from complete_verifier.attack.settings import AttackSettings
from tests.attack.nets import box, prop, random_layers, region, row, save

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

UNIT = box(("0", "1"), ("0", "1"))


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return read_onnx(save(random_layers(3, 2, 16, 16, 1), tmp_path / "net.onnx"), LocalStore(), device="cuda")


@pytest.mark.parametrize("scouting", [False, True])
def test_found_on_the_gpu(graph: Graph, scouting: bool) -> None:
    axis = torch.linspace(0, 1, 60, device="cuda")
    lowest = float(evaluate(graph, torch.cartesian_prod(axis, axis)).min())
    target = prop(region(UNIT, [row({0: "1"}, str(lowest + 1e-3))]))
    assert attack(graph, target, AttackSettings(scouting=scouting), "cuda", lambda: 1e9) is not None


def _without_waiting(method: Callable[..., object]) -> Callable[..., object]:
    def watched(*arguments: object) -> object:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return method(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return watched


def test_steps_do_not_synchronise(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_step", "_gradient"):
        monkeypatch.setattr(Descent, name, _without_waiting(getattr(Descent, name)))
    target = prop(region(UNIT, [row({0: "1"}, "-1e3")]))
    assert attack(graph, target, AttackSettings(steps=20), "cuda", lambda: 1e9) is None
