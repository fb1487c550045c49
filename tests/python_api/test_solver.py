"""Verdicts from Python: right by MILP, the command line's, confirmed by the network itself; nothing else is changed."""

from __future__ import annotations

import logging
import random
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from abcrown import ABCrownSolver, SolveResult, VerificationSpec, default_config, input_vars, load_onnx, output_vars
from abcrown.networks import ComputingGraph
from auto_LiRPA import BoundedModule
from auto_LiRPA.errors import ConfigError, ModelError, SpecError, UserError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from tests.end_to_end.runs import run, write
from tests.nets import Dense, dense_layers, mlp
from tests.python_api.problems import N_IN, Known, module_of, quick


def check(known: Known, result: SolveResult, answer: Callable[[Tensor], Tensor]) -> None:
    """The verdict is the MILP's, and a counterexample is one."""
    assert result.verdict == ("unsat" if known.holds else "sat")
    assert result.success == known.holds and result.status.startswith("safe" if known.holds else "unsafe")
    if not known.holds:
        assert result.counterexample is not None and result.output is not None
        y = answer(result.counterexample.unsqueeze(0))[0]
        assert known.violated(result.counterexample.numpy(), y.detach().numpy())
        assert torch.allclose(y, result.output, atol=1e-5)


def by_onnxruntime(session: onnxruntime.InferenceSession, x: Tensor) -> Tensor:
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def test_verdicts_equal_an_exact_solver(count: Callable[[int, int], int]) -> None:
    verdicts = set()
    for seed in range(count(8, 150)):
        known = Known.make(seed)
        graph = known.graph
        check(known, ABCrownSolver(known.spec(), graph, quick()).solve(), partial(evaluate, graph))
        verdicts.add(known.holds)
    assert verdicts == {True, False}


def test_the_command_line_says_the_same_of_the_same_text(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, count: Callable[[int, int], int]
) -> None:
    for seed in range(100, 100 + count(3, 60)):
        known = Known.make(seed)
        network, specification = write(tmp_path, known.onnx, known.text())
        word = run(capsys, tmp_path, (network, specification), "--timeout", "60").word
        session = onnxruntime.InferenceSession(network)
        for spec in (known.spec(), VerificationSpec.build_spec(vnnlib_path=specification)):
            result = ABCrownSolver(spec, network, quick()).solve()
            check(known, result, partial(by_onnxruntime, session))
            assert result.verdict == word


def known_case(holds: bool) -> Known:
    return next(known for known in map(Known.make, range(200, 300)) if known.holds == holds and len(known.boxes) == 1)


@pytest.mark.parametrize("holds", [True, False])
def test_every_kind_of_network(holds: bool, tmp_path: Path) -> None:
    known = known_case(holds)
    onnx.save(known.onnx, tmp_path / "net.onnx")
    module = known.module
    networks: dict[str, ComputingGraph] = {
        "path": tmp_path / "net.onnx",
        "loaded": load_onnx(tmp_path / "net.onnx"),
        "graph": known.graph,
    }
    if not holds:  # exports take a second each
        networks |= {"module": module, "bounded": BoundedModule(module, torch.zeros(1, N_IN))}
    for name, network in networks.items():
        result = ABCrownSolver(known.spec(), network, quick(), name=name).solve()
        check(known, result, module)
        assert result.counterexample is None or result.counterexample.dtype == torch.float32
        assert Path(result.stats["specification"]).name == name


def test_doubles_are_bounded_and_judged_in_doubles() -> None:
    """A limit between two float32 numbers: only float64 tells its two sides apart."""
    identity = mlp([Dense(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))])
    x, y = input_vars(1), output_vars(1)
    limit = 1 + 2.0**-40
    box = (x >= 1) & (x <= limit)
    held = ABCrownSolver(VerificationSpec.build_spec(x, y, box, y < limit + 2.0**-50), identity, quick()).solve()
    assert held.verdict == "unsat"
    result = ABCrownSolver(VerificationSpec.build_spec(x, y, (x >= 2) & (x <= 3), y < 2.5), identity, quick()).solve()
    assert result.counterexample is not None and result.counterexample.dtype == torch.float64


def test_strictness_decides_on_the_limit() -> None:
    """y = x on [0, 1]: y < 1 is violated at 1 alone, y < 1 with x < 1 is not violated at all."""
    identity = mlp([Dense(torch.ones(1, 1), torch.zeros(1))])
    x, y = input_vars(1), output_vars(1)

    def verdict(box: object, prop: object) -> str:
        spec = VerificationSpec.build_spec(x, y, box, prop)  # type: ignore[arg-type]
        return ABCrownSolver(spec, identity, quick()).solve().verdict

    closed = (x >= 0) & (x <= 1)
    assert verdict(closed, y < 1) == "sat"
    assert verdict(closed, y < 1 + 2.0**-20) == "unsat"
    assert verdict(closed & (x < 1), y < 1) != "sat"
    assert verdict(closed, y > 0) == "sat"
    assert verdict(closed, ~(y <= 0)) == "sat"
    assert verdict(closed, (y < 0.5) | (y > 0.25)) == "unsat"


class Mode(nn.Module):
    """Dropout, batch norm and a count of forward calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_the_module_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    module = Mode().train()
    module.body[3].eval()  # a mode of its own
    state = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    x, y = input_vars(2), output_vars(2)
    spec = VerificationSpec.build_spec(x, y, (x >= -1) & (x <= 1), y[0] > y[1] + 100)
    config = quick().set(general__double_fp=True)  # another dtype than the module's
    result = ABCrownSolver(spec, module, config).solve()
    assert result.verdict == "sat"
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(p.dtype == torch.float32 and p.grad is None for p in module.parameters())


@pytest.fixture(scope="module")
def small() -> tuple[VerificationSpec, Graph]:
    x, y = input_vars(N_IN), output_vars(3)
    spec = VerificationSpec.build_spec(x, y, (x >= -0.1) & (x <= 0.1), y[0] > -100)
    return spec, mlp(dense_layers([N_IN, 6, 3], 1, torch.float32))


def test_the_process_is_left_as_it_was(small: tuple[VerificationSpec, Graph]) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    wanted = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT)]
    flags = torch.get_float32_matmul_precision(), torch.backends.cudnn.deterministic
    assert ABCrownSolver(*small, quick()).solve().success
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == wanted
    assert torch.get_num_threads() == 2
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT)] == handlers
    assert flags == (torch.get_float32_matmul_precision(), torch.backends.cudnn.deterministic)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_of_the_callers_still_rings(small: tuple[VerificationSpec, Graph]) -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 3600.0)
        assert ABCrownSolver(*small, quick()).solve().success
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 3000
        signal.raise_signal(signal.SIGALRM)
        assert rung == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_a_thread_may_solve(small: tuple[VerificationSpec, Graph]) -> None:
    found: list[SolveResult] = []
    thread = threading.Thread(target=lambda: found.append(ABCrownSolver(*small, quick()).solve()))
    thread.start()
    thread.join()
    assert found[0].success


def test_the_deadline_is_kept() -> None:
    """A question that nothing settles within its second."""
    layers = dense_layers([8, 64, 64, 1], 1, torch.float32)
    x, y = input_vars(8), output_vars(1)
    spec = VerificationSpec.build_spec(x, y, (x >= -3) & (x <= 3), y > least(module_of(layers)) - 0.05)
    result = ABCrownSolver(spec, mlp(layers), quick().set(bab__timeout=2)).solve()
    assert result.verdict == "timeout" and not result.success and result.status == "unknown"
    assert result.stats["wall_s"] < 4 and "time limit" in result.stats["stopped_by"]


def least(module: nn.Module) -> float:
    """The least output that a long descent finds."""
    x = (6 * torch.rand(400, 8, generator=torch.Generator().manual_seed(0)) - 3).requires_grad_()
    for step in range(100):
        (gradient,) = torch.autograd.grad(module(x).sum(), x)
        x = (x.detach() - 0.3 * 0.97**step * gradient.sign()).clamp(-3, 3).requires_grad_()
    return float(module(x).detach().min())


def test_reference_bounds_hold_and_are_used() -> None:
    """Bounds of a box serve a part of it; and a run believes what it is told, which shows that it looks at it."""
    layers = dense_layers([N_IN, 12, 12, 3], 5, torch.float32)
    module, graph = module_of(layers), mlp(layers)
    x, y = input_vars(N_IN), output_vars(3)
    with torch.no_grad():
        samples = 2 * torch.rand(5000, N_IN) - 1
        low = float(module(samples)[:, 0].min())
    config = quick().set(attack__pgd_order="skip", general__complete_verifier="skip")
    spec = VerificationSpec.build_spec(x, y, (x >= -1) & (x <= 1), y[0] > low - 0.05)
    first = ABCrownSolver(spec, graph, config).solve()
    assert not first.success and first.reference
    hidden = module[0](samples)
    lower, upper = first.reference["n1"]
    assert lower.shape == (1, 12) and bool(((lower <= hidden) & (hidden <= upper)).all())
    assert ABCrownSolver(spec, graph, config).solve(return_reference=False).reference == {}

    part = VerificationSpec.build_spec(x, y, (x >= -0.9) & (x <= 0.9), y[0] > low - 0.05)
    alone = ABCrownSolver(part, graph, config).solve()
    told = ABCrownSolver(part, graph, config).solve(interm_bounds=first.reference)
    assert min(told.stats["bounds"]["lower"]) >= min(alone.stats["bounds"]["lower"]) - 1e-5
    points = {name: (v, v) for name, v in (("n1", module[0](torch.zeros(1, N_IN)).detach()),)}
    believed = ABCrownSolver(spec, graph, config).solve(interm_bounds=points)
    assert min(believed.stats["bounds"]["lower"]) > min(first.stats["bounds"]["lower"]) + 0.05


def spec_of(shape: int | tuple[int, ...], n_out: int = 2) -> VerificationSpec:
    x, y = input_vars(shape), output_vars(n_out)
    return VerificationSpec.build_spec(x, y, (x >= 0) & (x <= 1), y[0] > -1e6)


def test_images_with_and_without_their_batch_axis() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    assert ABCrownSolver(spec_of((1, 3, 4, 4)), module, quick()).solve().success
    bounded = BoundedModule(module, torch.zeros(1, 3, 4, 4))
    for shape in ((3, 4, 4), (1, 3, 4, 4), 48):
        assert ABCrownSolver(spec_of(shape), bounded, quick()).solve().success
    with pytest.raises(SpecError, match="order its axes alike"):
        ABCrownSolver(spec_of((4, 4, 3)), bounded, quick()).solve()


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


FAULTS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no specification": (lambda: ABCrownSolver("p.vnnlib", nn.Linear(2, 2)), SpecError, "spec: str"),  # type: ignore[arg-type]
    "no network": (lambda: ABCrownSolver(spec_of(2), 3), ModelError, "computing_graph: int"),  # type: ignore[arg-type]
    "no file": (lambda: ABCrownSolver(spec_of(2), "no.onnx", quick()).solve(), ModelError, "no.onnx: no such file"),
    "config of another kind": (lambda: ABCrownSolver(spec_of(2), nn.Linear(2, 2), 3), ConfigError, "int"),  # type: ignore[arg-type]
    "config with an unknown key": (
        lambda: ABCrownSolver(spec_of(2), nn.Linear(2, 2), {"bab": {"time": 3}}), ConfigError, "bab.time: unknown"
    ),
    "config file missing": (lambda: ABCrownSolver(spec_of(2), nn.Linear(2, 2), "no.yaml"), ConfigError, "no.yaml"),
    "no such device": (
        lambda: ABCrownSolver(spec_of(2), nn.Linear(2, 2), {"general": {"device": "cuda"}}).solve(),
        ConfigError,
        "no CUDA device",
    ),
    "other inputs": (lambda: ABCrownSolver(spec_of(3), pair(), quick()).solve(), SpecError, "takes 2 inputs"),
    "other outputs": (lambda: ABCrownSolver(spec_of(2, 3), pair(), quick()).solve(), SpecError, "gives 2"),
    "a module that refuses": (
        lambda: ABCrownSolver(spec_of(3), nn.Linear(2, 2), quick()).solve(), ModelError, r"one sample of shape \(3,\)"
    ),
    "two outputs": (lambda: ABCrownSolver(spec_of(2), Two(), quick()).solve(), ModelError, "."),
    "half precision": (
        lambda: ABCrownSolver(spec_of(2), nn.Linear(2, 2).half(), quick()).solve(), ModelError, "float32 or float64"
    ),
    "an unknown node": (
        lambda: ABCrownSolver(spec_of(2), pair(), quick()).solve({"x": (torch.zeros(2),) * 2}),
        ConfigError,
        "interm_bounds: no node 'x'",
    ),
    "crossed bounds": (
        lambda: ABCrownSolver(spec_of(2), pair(), quick()).solve(
            {"n1": (torch.ones(2), torch.zeros(2))}
        ),
        SpecError,
        "above the upper one",
    ),
    "bounds of another shape": (
        lambda: ABCrownSolver(spec_of(2), pair(), quick()).solve({"n1": (torch.ones(3),) * 2}),
        SpecError,
        "expected two tensors",
    ),
}  # fmt: skip


def pair() -> Graph:
    return mlp(dense_layers([2, 2, 2], 0, torch.float32))


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_user_errors_of_one_line(name: str) -> None:
    if name == "no such device" and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    act, kind, message = FAULTS[name]
    with pytest.raises(kind, match=message) as caught:
        act()
    assert issubclass(kind, UserError) and "\n" not in str(caught.value)


def test_settings_that_name_another_question_are_passed_over(
    small: tuple[VerificationSpec, Graph], caplog: pytest.LogCaptureFixture
) -> None:
    config = quick().set(model__onnx_path="no.onnx", specification__vnnlib_path="no.vnnlib", data__dataset="CIFAR")
    with caplog.at_level(logging.INFO, logger="abcrown"):
        assert ABCrownSolver(*small, config).solve().success
    assert "model.onnx_path" in caplog.text and "data.dataset" in caplog.text
    assert "Verified" in caplog.text  # what the command prints is logged


def test_a_plain_dictionary_and_none_will_do(small: tuple[VerificationSpec, Graph]) -> None:
    assert ABCrownSolver(*small, default_config()).solve().success
    assert ABCrownSolver(*small).solve().success
