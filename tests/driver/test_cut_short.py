"""A confirmed counterexample is the verdict, whatever ends the run then; one session confirms all candidates."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from complete_verifier.attack import onnx_network
from complete_verifier.config import LoadedConfig, load_config
from complete_verifier.driver.contexts import make_context
from complete_verifier.driver.instance import run_instance
from complete_verifier.driver.instances import Instance
from complete_verifier.driver.interrupts import DeadlinePassed, Interrupts, Terminated
from complete_verifier.driver.user_code import UserCode
from complete_verifier.events import AttackEnded, Listener, SearchProgressed
from complete_verifier.outcome import Verdict
from complete_verifier.problem import Clock
from complete_verifier.reporting.report import InstanceReport
from tests.end_to_end.runs import COMMON, Hard

HARD = Hard.make([3, 8, 8, 2], 0)


def decided(folder: Path, listen: Listener, margin: float, *flags: str) -> InstanceReport:
    network, specification = HARD.write(folder, margin)
    loaded: LoadedConfig = load_config([*COMMON, *flags])
    instance = Instance(0, Path(network), Path(specification))
    clock = Clock(time.monotonic(), 60.0)
    return run_instance(loaded.config, instance, make_context(loaded)[0], clock, listen, Interrupts())


@pytest.mark.parametrize("end", [DeadlinePassed, Terminated])
def test_a_confirmed_counterexample_outlives_the_end(tmp_path: Path, end: type[BaseException]) -> None:
    def listen(event: object) -> None:
        if isinstance(event, AttackEnded) and event.confirmed:
            raise end

    report = decided(tmp_path, listen, 1.0)
    assert (report.verdict, report.status) == (Verdict.VIOLATED, "unsafe-pgd")
    assert report.counterexample is not None and "(Y_0" in report.counterexample


@pytest.mark.parametrize("end", [DeadlinePassed, Terminated])
def test_without_a_counterexample_the_end_is_the_end(tmp_path: Path, end: type[BaseException]) -> None:
    def listen(event: object) -> None:
        if isinstance(event, AttackEnded):
            raise end

    report = decided(tmp_path, listen, -0.001)
    assert report.verdict is (Verdict.TIMEOUT if end is DeadlinePassed else Verdict.UNKNOWN)
    assert report.counterexample is None and report.status == "unknown"


def test_the_search_names_its_counterexample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline passes while the search winds up, after a candidate was confirmed."""
    from complete_verifier.driver import search_stage

    def search(problem, start, settings, share, on_progress, on_candidate, *rest):  # type: ignore[no-untyped-def]
        grid = np.random.default_rng(0).uniform(-1, 1, size=(2000, 3)).astype(np.float32)
        assert any(on_candidate(x) for x in grid)
        assert not on_candidate(next(x for x in grid if not on_candidate(x)))  # which takes nothing back
        raise DeadlinePassed

    monkeypatch.setattr(search_stage, "refined_search", search)
    flags = ("--pgd_order", "skip", "--complete_verifier", "bab", "--bound_prop_method", "crown")
    report = decided(tmp_path, lambda event: None, 0.3, *flags)
    assert (report.verdict, report.status) == (Verdict.VIOLATED, "unsafe-bab")


def test_a_counterexample_that_the_users_verifier_has_not_seen_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: UserCode, config: object, found: object) -> bool:
        raise DeadlinePassed

    monkeypatch.setattr(UserCode, "accepted", slow)
    (tmp_path / "user.py").write_text("def check(**given):\n    return False\n")
    flags = ("--adv_verifier", f'Customized("{tmp_path / "user.py"}", "check")')
    assert decided(tmp_path, lambda event: None, 1.0, *flags).verdict is Verdict.TIMEOUT
    assert decided(tmp_path, lambda event: None, 1.0).verdict is Verdict.VIOLATED


@pytest.mark.parametrize("splits", ["true", "false"])
def test_one_session_confirms_all_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits: str) -> None:
    opened: list[Path] = []
    asked: list[int] = []
    plain_init, plain_run = onnx_network.OnnxNetwork.__init__, onnx_network.OnnxNetwork.run

    def init(self: onnx_network.OnnxNetwork, path: str | Path) -> None:
        opened.append(Path(path))
        plain_init(self, path)

    def run(self: onnx_network.OnnxNetwork, x: np.ndarray) -> np.ndarray:
        asked.append(len(opened))
        return plain_run(self, x) + 100  # no candidate stands

    monkeypatch.setattr(onnx_network.OnnxNetwork, "__init__", init)
    monkeypatch.setattr(onnx_network.OnnxNetwork, "run", run)
    flags = ("--complete_verifier", "bab", "--set", f"bab.branching.input_split.enable={splits}")
    more = ("--bound_prop_method", "crown", "--max_iterations", "4", "--pgd_steps", "5")
    assert decided(tmp_path, lambda event: None, 1.0, *flags, *more).verdict is not Verdict.VIOLATED
    assert len(asked) > 5 and len(opened) == 1


def test_a_proof_opens_no_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: object, path: object) -> None:
        pytest.fail("opened without a candidate")

    monkeypatch.setattr(onnx_network.OnnxNetwork, "__init__", init)
    seen: list[object] = []
    assert decided(tmp_path, seen.append, -50.0).verdict is Verdict.HOLDS
    assert not any(isinstance(event, SearchProgressed) for event in seen)
