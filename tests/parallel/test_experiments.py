"""The paper's experiments at reduced size on two ranks: every check that they make holds, and it can fail."""

from __future__ import annotations

import copy
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.parallel import building, plan_check, plots, run, starting
from benchmarks.parallel.asking import asked
from benchmarks.parallel.experiments import exp2, exp3, exp4, kinds
from benchmarks.parallel.starting import Job
from tests.parallel.launching import Launch, launch, once, run_tree
from tests.support import ROOT, shared_dir

CONFIGS = ROOT / "exp_configs" / "parallel"
EXISTING = tuple(n for n in run.NUMBERS if (ROOT / "benchmarks" / "parallel" / "experiments" / f"exp{n}.py").exists())
TOGETHER = (2, 3, 4, 5)  # one script, so one import for all
LONG: tuple[int, ...] = ()  # run in the long form only

Found = tuple[list[dict[str, Any]], list[str]]  # figures, and what went wrong


def _options(models: Path) -> kinds.Options:
    data = shared_dir("benchmarks")
    return kinds.Options(worlds=(1, 2), reduced=True, repeats=1, data=data, models=models, configs=CONFIGS)


def _measured(numbers: tuple[int, ...], folder: Path) -> dict[int, Found]:
    """All jobs of some experiments, and what they have measured."""
    jobs = [(n, job) for n in numbers for job in run.load(n).jobs(_options(folder / "models"))]
    function = "tests.parallel.experiment_workers:script"
    done = launch(
        [Launch(job.ranks, function, (job, str(folder / f"{n}.jsonl")), timeout_s=job.timeout_s) for n, job in jobs]
    )
    wrong: dict[int, list[str]] = {n: [] for n in numbers}
    for (n, job), outcome in zip(jobs, done, strict=True):
        if not outcome.ok:
            wrong[n].append(f"{job.key}\n{outcome.told()}")
    return {n: (starting.read(folder / f"{n}.jsonl"), wrong[n]) for n in numbers}


def _results(number: int, factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    numbers = TOGETHER if number in TOGETHER else (number,)
    name = f"experiments-{'-'.join(map(str, numbers))}"
    figures, wrong = once(factory, name, lambda: _measured(numbers, factory.mktemp(name)))[number]
    assert not wrong, "\n".join(wrong)
    return figures


def _broken(checks: Any) -> list[str]:
    return [f"{c.what}: wanted {c.wanted}, measured {c.measured}" for c in checks if c.met is False and not c.goal]


@pytest.mark.parametrize("number", [n for n in EXISTING if n not in LONG])
def test_reduced(number: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    experiment = run.load(number)
    figures = _results(number, tmp_path_factory)
    assert figures and {one["world"] for one in figures} == {1, 2}
    for one in figures:
        assert one["exp"] == number and one["device"] == "cpu" and one["torch"] and one["date"] and one["command"]
    checks = list(experiment.checks(figures))
    assert checks and not _broken(checks)
    assert "## Checks" in run.report(experiment, figures, checks, [])
    assert all(len(line) == len(one.header) for one in experiment.tables(figures) for line in one.lines)
    list(experiment.bars(figures))


def test_counted_memory_is_what_the_model_says(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The parts are counted while a pass runs, the model is arithmetic on a dry run: neither knows of the other."""
    figures = _results(5, tmp_path_factory)
    assert {one["mode"] for one in figures} == {"single", "offload", "fsdp", "fsdp+rows", "rows", "tp"}
    for one in figures:
        model = plan_check.predicted(one).parts
        for rank in one["ranks"]:
            parts = rank["parts_mib"]
            assert parts["weights"] == pytest.approx(model["weights"] / 2**20, abs=1e-3)
            assert parts["gathered"] == pytest.approx(model["blocks"] / 2**20, abs=1e-3)
            transient = (model["tile"] + model["bounds"]) / 2**20
            assert parts["A"] + parts["bounds"] == pytest.approx(transient, rel=0.05)
            assert parts["A"] > 5 * parts["bounds"] and parts["alpha"] == 0 and "rest" not in parts


@pytest.mark.soak
@pytest.mark.parametrize("number", EXISTING)
def test_the_command_in_full(number: int, tmp_path: Path) -> None:
    shared_dir("benchmarks")
    words = [sys.executable, "benchmarks/parallel/run.py", "--exp", str(number), "--reduced", "--out", str(tmp_path)]
    done = run_tree([*words, "--models", str(tmp_path / "models")], 600.0, {"OMP_NUM_THREADS": "1"})
    assert done.code == 0, done.output[-4000:]
    kept = (tmp_path / f"exp{number}_reduced.jsonl").read_text()
    again = run_tree([*words, "--models", str(tmp_path / "models")], 600.0)
    assert again.code == 0 and (tmp_path / f"exp{number}_reduced.jsonl").read_text() == kept
    assert (tmp_path / f"exp{number}_reduced.md").read_text().startswith(f"# Experiment {number}")


# -- the checks can fail --------------------------------------------------------------------------------------------
def _figure(mode: str, world: int, **changes: Any) -> dict[str, Any]:
    figure = {
        "net": "n", "method": "CROWN", "tile": 64, "mode": mode, "world": world, "block_mib": 0.125, "ms": 1.0,
        "lower": [-1.0, 0.0], "upper": [1.0, 2.0], "sampled_min": [-0.5, 0.5], "sampled_max": [0.5, 1.5],
        "samples": 9, "digests": ["a"], "weight_mib": 1.0 if world == 1 else 0.505, "pairs": ["a > b"],
        "ranks": [{"live_blocks_max": 1}] * world,
    }  # fmt: skip
    return {**copy.deepcopy(figure), **changes}


FAULTS = [
    (exp2, "tp", {}, 0),
    (exp2, "tp", {"lower": [-1.0, -1e-4]}, 1),
    (exp2, "tp-ibp", {"lower": [-1.0, -1e-4]}, 0),
    (exp2, "tp-ibp", {"lower": [-0.4, 0.0]}, 1),
    (exp2, "tp", {"digests": ["a", "b"]}, 1),
    (exp3, "tp", {}, 0),
    (exp3, "tp", {"weight_mib": 0.6}, 1),
    (exp3, "tp", {"upper": [1.0, 2.1]}, 1),
    (exp4, "fsdp", {}, 0),
    (exp4, "fsdp", {"lower": [-1.0, -1e-9], "digests": ["b"]}, 2),
    (exp4, "rows", {"digests": ["a", "b"]}, 1),
    (exp4, "fsdp+rows", {"weight_mib": 0.7}, 1),
]


@pytest.mark.parametrize(("module", "mode", "changes", "broken"), FAULTS)
def test_a_check_can_fail(module: Any, mode: str, changes: dict[str, Any], broken: int) -> None:
    figures = [_figure("single", 1), _figure(mode, 2, **changes)]
    assert len(_broken(module.EXPERIMENT.checks(figures))) == broken


def test_a_missed_goal_is_told_and_no_error() -> None:
    assert kinds.at_most("x", 1.0, 2.0, goal=True).met is False
    assert kinds.at_most("x", 1.0, None).met is None
    assert not _broken([kinds.at_most("x", 1.0, 2.0, goal=True), kinds.at_least("x", 1.0, None)])


# -- the configurations ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("exp[2-5]_*.yaml")), ids=lambda path: path.stem)
def test_configurations(path: Path) -> None:
    one = asked(path)
    assert one.method.name == "CROWN" and not one.bounds.compare_with_ibp
    wanted = {"2": "tp", "3": "tp", "4": "fsdp", "5": "fsdp"}[path.stem[3]]
    assert one.config.parallel.mode == wanted
    assert one.onnx is not None or one.size == tuple(int(n) for n in path.stem.rpartition("_")[2].split("x"))
    text = (ROOT / str(one.config.specification.vnnlib_path)).read_text()
    assert text.count("declare-const X_") == 784 and text.count("(<= Y_") == 10
    assert f"--config exp_configs/parallel/{path.name}" in path.read_text()


def test_drawn_networks_are_those_of_the_configurations() -> None:
    """What `of_config.py` builds layer by layer has the numbers of the module that the command builds."""
    from auto_LiRPA.parallel.context import DistributedContext

    module = runpy.run_path(str(CONFIGS / "paper_networks.py"))["mlp"](24, 3)
    graph, _ = building.mlp(DistributedContext.single(), 24, 3)
    own = [torch.cat([block.data for block in weight.blocks()]) for weight in graph.weights]
    theirs = [p for name, p in module.named_parameters() if name.endswith("weight")]
    assert len(own) == len(theirs) == 4
    assert all(torch.equal(a, b) for a, b in zip(own, theirs, strict=True))


def test_the_command_gives_the_bounds_of_the_script(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from complete_verifier.__main__ import main

    figures = _results(4, tmp_path_factory)
    held = [one for one in figures if one["net"] == "onnx_256x2" and one["method"] == "CROWN"]
    single = next(one for one in held if one["mode"] == "single")
    monkeypatch.chdir(ROOT)
    network = shared_dir("benchmarks", "mnist_fc", "onnx", "mnist-net_256x2.onnx")
    words = f"--config {CONFIGS / 'exp4_onnx_256x2.yaml'} --onnx_path {network} --device cpu --quiet"
    more = f"--stats_file {tmp_path / 's.json'} --results_file {tmp_path / 'r.txt'} --set parallel.threads=1"
    assert main([*words.split(), *more.split()]) == 0
    # not bit for bit: the command asks for lower bounds only, so its products have fewer rows
    lower = json.loads((tmp_path / "s.json").read_text())["bounds"]["lower"]
    assert lower == pytest.approx(single["lower"], rel=1e-5, abs=1e-7)


# -- the frame ------------------------------------------------------------------------------------------------------
def _job(folder: Path, text: str, ranks: int = 1, timeout_s: float = 30.0) -> Job:
    path = folder / "script.py"
    path.write_text(f"import json, os, sys, time\nrank = int(os.environ.get('RANK', '0'))\n{text}\n")
    return Job(str(path), ranks, ("--x",), timeout_s)


TELL = "if rank == 0:\n    open(sys.argv[3], 'a').write(json.dumps({'n': 1}) + '\\n')"


def test_jobs_are_resumed(tmp_path: Path) -> None:
    job, out = _job(tmp_path, TELL, 2), tmp_path / "f.jsonl"
    for _ in range(2):
        assert starting.run_jobs([job], out, 60.0) == []
    assert [one for one in starting.read(out) if "n" in one] == [{"n": 1}]
    assert starting.run_jobs([job, _job(tmp_path, "", 3)], out, 1.0) == [f"not begun: {_job(tmp_path, '', 3).key}"]


def test_a_rank_that_fails_ends_the_others(tmp_path: Path) -> None:
    text = "if rank == 1:\n    print('rank 1 says why')\n    sys.exit(7)\ntime.sleep(3600)"
    wrong = starting.run_jobs([_job(tmp_path, text, 2)], tmp_path / "f.jsonl", 60.0)
    assert len(wrong) == 1 and wrong[0].startswith("exit code 7") and "rank 1 says why" in wrong[0]
    assert not starting.read(tmp_path / "f.jsonl")


def _runs(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_job_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    text = f"import subprocess as s\nopen({str(pid)!r}, 'w').write(str(s.Popen(['sleep', '3600']).pid))\ntime.sleep(99)"
    wrong = starting.run_jobs([_job(tmp_path, text, 1, 2.0)], tmp_path / "f.jsonl", 60.0)
    assert wrong[0].startswith("timed out")
    gives_up = time.monotonic() + 10  # a killed process takes its time to end on a busy machine
    while _runs(int(pid.read_text())) and time.monotonic() < gives_up:
        time.sleep(0.05)
    assert not _runs(int(pid.read_text()))


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    charts: list[kinds.Chart] = [
        kinds.Bars("b", "bars", "MiB", (kinds.Bar("one", {"a": 1.0, "b": 2.0}), kinds.Bar("two", {"b": 1.0}))),
        kinds.Curves("c", "curves", "P", "times", {"x": ((1, 1.0), (2, 1.9))}),
        kinds.Curves("empty", "nothing", "P", "times", {}),
    ]
    found = list(plots.draw(charts, tmp_path, "exp0"))
    assert [path.name for path in found] == ["exp0_b.png", "exp0_c.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in found)


def test_no_pictures_without_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bars = [kinds.Bars("b", "bars", "MiB", (kinds.Bar("one", {"a": 1.0}),))]
    assert list(plots.draw(bars, tmp_path, "exp0")) == [] and "no pictures" in caplog.text


def test_figures_are_written_where_the_experiment_looks() -> None:
    """What stands behind `--` belongs to the command that a script runs; its own words stand before."""
    for words, wanted in (
        (("--mode", "x"), ["--mode", "x", "--out", "f.jsonl"]),
        (("--ranks", "2", "--", "--onnx_path", "n"), ["--ranks", "2", "--out", "f.jsonl", "--", "--onnx_path", "n"]),
    ):
        assert Job("a.py", 1, words).command(Path("f.jsonl"))[2:] == wanted
