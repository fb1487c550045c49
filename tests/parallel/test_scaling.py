"""The scaling study: what it runs, how it goes on, what its checks catch, and its time model on laws that are known."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from auto_LiRPA.bounds.dry_run import Asked
from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.bounds.wide import WideLoop
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.numerics import full_precision
from auto_LiRPA.parallel.recording import NoRecorder
from auto_LiRPA.values import Box
from benchmarks.live_bytes import LiveBytes
from benchmarks.parallel import building, measuring, plan_check, wide_time
from benchmarks.parallel.experiments.kinds import Options
from benchmarks.parallel.measuring import settings_of
from benchmarks.parallel.scaled import mlp, predicting, report, residual, running, timing, wide
from benchmarks.parallel.scaled.kinds import MIB, Measured, Point, Predicted, Task, in_order
from benchmarks.parallel.scaled.running import Runner
from benchmarks.parallel.starting import HERE, Job, read
from tests.parallel.launching import run_tree
from tests.support import ROOT, shared_dir

TWICE = """
import sys
from benchmarks.parallel import scaling
words = sys.argv[1:]
codes = [scaling.main(words)]
size = len(open(words[words.index("--out") + 1] + "/scaling_reduced.jsonl").read())
codes.append(scaling.main(words))  # nothing is left to run
codes.append(size - len(open(words[words.index("--out") + 1] + "/scaling_reduced.jsonl").read()))
print("codes", codes)
"""


def _study(folder: Path, *words: str, limit: float) -> tuple[str, list[dict[str, Any]]]:
    more = ("--reduced", "--out", str(folder), "--models", str(folder / "models"), "--budget", str(limit - 20))
    done = run_tree([sys.executable, "-c", TWICE, *words, *more], timeout_s=limit, cwd=ROOT)
    assert "codes [0, 0, 0]" in done.output, done.output[-6000:]
    return (folder / "scaling_reduced.md").read_text(), read(folder / "scaling_reduced.jsonl")


# -- the whole of it -------------------------------------------------------------------------------------------------
def test_a_dry_run_on_two_ranks(tmp_path: Path) -> None:
    modes = ("single", "fsdp+rows", "tp")
    text, figures = _study(tmp_path, "--exp", "1", "5", "--worlds", "1", "2", "--modes", *modes, limit=120)
    seen = {(one["exp"], one["mode"], one["world"]) for one in figures if "exp" in one}
    for exp in (1, 5):
        wanted = {("single", 1), ("fsdp+rows", 2), ("tp", 2)}
        assert {(mode, world) for number, mode, world in seen if number == exp} == wanted
    assert text.count("{single P=1, fsdp+rows P=2} |  | yes") == 2  # one line an experiment
    assert not any(one.get("shared_host") for one in figures)
    assert "strong scaling" in text and "weak scaling" in text and "PREDICTED against measured" in text
    moved = {one["mode"]: one for one in figures if one.get("what") == "mem_time" and one["h"] == 64}
    for mode in ("fsdp+rows", "tp"):  # the model's traffic is what the counters say, to the digits they keep
        found = mlp.predict(Point(exp=5, setting="tile 8", size="64x3", mode=mode, world=2))
        assert found.traffic_mib == pytest.approx(moved[mode]["ranks"][0]["traffic_mib"], abs=0.06)


@pytest.mark.soak
def test_all_experiments_on_up_to_four_ranks(tmp_path: Path) -> None:
    data = ("--data", str(shared_dir("benchmarks")))
    text, figures = _study(tmp_path, "--worlds", "1", "2", "4", *data, limit=1500)
    seen = {(one["exp"], one["world"]) for one in figures if "exp" in one}
    assert seen >= {(exp, world) for exp in (1, 5, 6, 8) for world in (1, 2, 4)}
    assert "NO" not in text.split("## Commands")[0]


# -- checks ----------------------------------------------------------------------------------------------------------
def _figure(mode: str, world: int, digest: str = "a", **more: Any) -> dict[str, Any]:
    rank = {"traffic_mib": 1.0}
    size = {"what": "mem_time", "exp": 5, "h": 64, "d": 3, "tile": "8", "mode": mode, "world": world}
    sums = {"digests": [digest], "lb_sum": 1.0, "ub_sum": 2.0}
    return {**size, **sums, "ms": 8.0 / world, "traffic_share": 0.1, "ranks": [rank] * world, **more}


def _unmet(*figures: dict[str, Any]) -> list[str]:
    results = report.Results.of(mlp.STUDY, figures, reduced=True)
    return [check.what for check in report.checks(results) if check.met is False]


def test_checks_catch_what_is_wrong() -> None:
    good = [_figure("single", 1), _figure("rows", 2), _figure("tp", 2, "b"), _figure("fsdp+rows", 4)]
    assert _unmet(*good) == []
    assert _unmet(*good[:3], _figure("fsdp+rows", 4, "c")) == ["exp 5, tile 8, 64x3: bits"]
    (what,) = _unmet(*good[:3], _figure("tp", 4, digests=["b", "c"]))
    assert "tp P=4: ranks" in what
    (what,) = _unmet(*good, _figure("tp", 4, "d", lb_sum=1.001))
    assert "tp P=4: sums of bounds" in what
    (what,) = _unmet(*good, _figure("rows", 8, peak_mib=100.0))
    assert "rows P=8: peak" in what


def test_efficiency() -> None:
    results = report.Results.of(mlp.STUDY, [_figure("single", 1), _figure("rows", 4, ms=4.0)], reduced=True)
    strong, weak = report.tables(results)
    assert strong.lines[1][5:7] == (2.0, 0.5)
    grown = _figure("rows", 4, h=128, ms=16.0)
    results = report.Results.of(mlp.STUDY, [_figure("single", 1), grown], reduced=True)
    _, weak = report.tables(results)
    (line,) = [line for line in weak.lines if line[2] == 4]
    times = mlp.work("128x3", "tile 8") / mlp.work("64x3", "tile 8")
    assert line[4] == times and line[6] == pytest.approx(times * 8.0 / 16.0 / 4)


# -- the time model --------------------------------------------------------------------------------------------------
def _predicted(work: float, gathered: float = 0.0, calls: float = 0.0) -> Predicted:
    return Predicted(peak=0, parts={}, work=work, gathered=gathered, exchanged=0.0, copied=0.0, calls=calls)


def _measured(mode: str, world: int, seconds: float) -> Measured:
    point = Point(exp=5, setting="tile 8", size="64x3", mode=mode, world=world)
    return Measured(point=point, seconds=seconds, share=None, traffic_mib=None, peak_mib=None, weight_mib=None, bits=())


def test_the_time_model_finds_the_law_behind_its_points() -> None:
    """2 s serial, 12 s shared out, a link of 4 bytes a second: P = 4 and 8 follow from P = 1 and 2."""
    law = {1: 14.0, 2: 8.0, 4: 5.0, 8: 3.5}
    wire = {world: 16.0 * (world - 1) / world / 4.0 for world in law}
    rows = {world: _predicted(12.0 / world) for world in law}
    fsdp = {world: _predicted(12.0 / world, gathered=16.0) for world in law}
    series = {
        ("single", 1): (_measured("single", 1, 14.0), rows[1]),
        ("rows", 2): (_measured("rows", 2, 8.0), rows[2]),
        ("fsdp+rows", 2): (_measured("fsdp+rows", 2, 8.0 + wire[2]), fsdp[2]),
    }
    plain, moving = timing.calibrated(series, "rows"), timing.calibrated(series, "fsdp+rows")
    assert plain is not None and moving is not None
    for world in (4, 8):
        assert plain.seconds(rows[world], world) == pytest.approx(law[world])
        assert moving.seconds(fsdp[world], world) == pytest.approx(law[world] + wire[world])
    far = moving.seconds(_predicted(0.0, gathered=64 * timing.NETWORK), 64, network=True)
    assert far == pytest.approx(2.0 + 63 * timing.NETWORK / 4.0)  # the link as seen is slower than the network
    fast = replace(moving, link=1e15).seconds(_predicted(0.0, gathered=64 * timing.NETWORK), 64, network=True)
    assert fast == pytest.approx(2.0 + 63)
    assert timing.calibrated({("rows", 2): series["rows", 2]}, "rows") is None


def test_ranks_that_only_wait_for_each_other() -> None:
    """Weak scaling: equal work, a second more at P = 2 and one more for each doubling."""
    series = {("single", 1): (_measured("single", 1, 5.0), _predicted(10.0)),
              ("domains", 2): (_measured("domains", 2, 6.0), _predicted(10.0))}  # fmt: skip
    found = timing.calibrated(series, "domains")
    assert found is not None and found.seconds(_predicted(10.0), 8) == pytest.approx(8.0)


def test_ranks_that_wait_for_nobody() -> None:
    """Free-running, weak scaling: a rank beside others is as fast as the rank of two was, however many there are."""
    series = {("single", 1): (_measured("single", 1, 5.0), _predicted(10.0)),
              ("domains", 2): (_measured("domains", 2, 3.0), _predicted(5.0))}  # fmt: skip
    found = timing.calibrated(series, "domains", apart=True)
    assert found is not None and found.seconds(_predicted(10.0 / 64), 64) == pytest.approx(6.0 / 64)


# -- what is predicted -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("mode", "world"), [("single", 1), ("fsdp+rows", 2), ("tp", 4), ("offload", 1)])
def test_predictions_are_the_planners(mode: str, world: int) -> None:
    point = Point(exp=5, setting="tile 256", size="512x4", mode=mode, world=world)
    found = mlp.predict(point)
    planner = plan_check.prediction(512, 4, settings_of(mode, 256), world, Asked())
    assert found.peak == planner.peak and found.parts == planner.parts
    assert found.gathered == planner.work["crown"].gathered


def test_meshes_keep_weights_within_a_host() -> None:
    inside = predicting.settings_for("fsdp+rows/8", 32, 512, 16.0)
    assert inside.mesh == {"weights": 8, "rows": 4}
    assert predicting.settings_for("tp+rows/8", 8, 512, 16.0).rows == "replicate"
    assert timing.crosses("fsdp+rows", 64) and not timing.crosses("fsdp+rows/8", 64) and not timing.crosses("tp", 8)


def test_the_wide_layers_count() -> None:
    """Of a rank: the same work and weights at every P, when the layer grows with P under tp."""
    grown = [
        wide.predict(wide.FULL, Point(exp=1, setting="tile 256", size=wide.weak("", p, False), mode="tp", world=p))
        for p in (2, 64, 512)
    ]
    assert len({(one.work, one.parts["weights"]) for one in grown}) == 1
    whole = wide.predict(wide.FULL, Point(exp=1, setting="tile 256", size="h 262144", mode="single", world=1))
    assert whole.parts["weights"] == 4096 * MIB and whole.work == 6 * 2048 * 4096 * 262144


class _Ended(Exception):
    pass


def _ended(loop: WideLoop) -> NoReturn:
    raise _Ended


@pytest.mark.parametrize(("tile", "block_mib"), [(32, 0.25), (128, 2.0)])  # the weights' share decides, the boxes'
def test_the_wide_layers_memory(tmp_path: Path, tile: int, block_mib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one rank's call makes, counted, against the count on paper: within 5 %."""
    own = SimpleNamespace(config=wide_time.CONFIG, hidden=4096, inputs=256, tile=tile, block_mib=block_mib, batch=256,
                          clamped=False)  # fmt: skip
    asked = wide_time.asked(own)  # type: ignore[arg-type]
    context = DistributedContext.single("cpu", wide_time.settings(asked, "single"))
    with torch.no_grad(), full_precision():
        weight = wide_time.first_weight(asked, tmp_path, context)
        graph, _ = building.wide(context, *wide_time.layers(asked, weight))
        x = asked.numbers.inputs(256, 256)
        region = Box(x - 0.01, x + 0.01)
        settings = BoundSettings(compare_with_ibp=False, wide_mib=0)
        with LiveBytes() as live:
            compute(graph, region, Query(boxes=False), Method.CROWN, context, settings)
        monkeypatch.setattr(WideLoop, "run", _ended)  # a rank with few tiles has its most before it begins with them
        with LiveBytes() as begun, suppress(_Ended):
            compute(graph, region, Query(boxes=False), Method.CROWN, context, settings)
    point = Point(exp=1, setting="", size="h 4096", mode="single", world=1)
    layer = wide.Layer(256, 256, tile, block_mib)
    found, few = wide.predict(layer, point), wide.predict(layer, replace(point, mode="rows", world=256))
    assert found.parts["rows"] + found.parts["tile"] == pytest.approx(live.peak, rel=0.05)
    boxes = wide.BOX_COPIES * 4 * 256 * 256  # GPUs had one copy more than is counted here
    assert 0.75 * boxes <= begun.peak <= boxes <= few.parts["rows"] + few.parts["tile"]


# -- how often a pass is measured ------------------------------------------------------------------------------------
class _Recording(NoRecorder):
    """Says that it records."""

    @property
    def works(self) -> bool:
        return not self._paused


@pytest.mark.parametrize(
    ("records", "moves", "enough_s", "passes"),
    [
        (False, False, 0.035, 1 + 2),  # the warm-up is looked at; after two of 20 ms it is enough
        (False, True, 1e9, 1 + 5),
        (True, False, 0.01, 2 + 1),  # at least one; nothing is moved, so its time need not be watched
        (True, True, 1e9, 2 + 5 + 1),
    ],
)
def test_a_pass_is_measured_often_enough(records: bool, moves: bool, enough_s: float, passes: int) -> None:
    context, seen, looked = DistributedContext.single("cpu"), list[int](), list[int]()
    context = replace(context, recorder=_Recording() if records else NoRecorder())

    def run() -> int:
        seen.append(len(seen))
        time.sleep(0.02)
        context.counters.replays += records
        if moves:
            with context.counters.collective("weights", 2 * MIB, torch.device("cpu")):
                pass
        return seen[-1]

    found = measuring.measure(context, run, 5, 1, enough_s, looked.append)
    assert len(seen) == passes and looked == [0]
    assert len(found["all_ms"]) == passes - (2 if records else 1) - (records and moves)
    assert found["ms"] >= 20 and found["traffic_mib"] == 2.0 * moves


def test_ranks_agree_on_what_is_enough() -> None:
    """Another rank's passes take longer: this one stops with it, though its own were short."""
    others = iter([False, False, True])
    world = SimpleNamespace(some=lambda flag: flag or next(others))
    times = measuring.repeated(SimpleNamespace(world=world), lambda: 0.1, 7, 5.0)  # type: ignore[arg-type]
    assert times == [0.1, 0.1]


def test_weights_that_are_kept_are_those_that_are_drawn(tmp_path: Path) -> None:
    context = DistributedContext.single("cpu")
    x = torch.rand(2, 784)
    drawn = evaluate(building.mlp(context, 24, 2)[0], x)
    for _ in range(2):
        assert torch.equal(evaluate(building.mlp(context, 24, 2, folder=tmp_path)[0], x), drawn)
        (path,) = tmp_path.iterdir()
        os.utime(path, (1, 1))
    assert path.stat().st_mtime == 1
    with open(path, "r+b") as file:
        file.write(bytes(4 * 784))
    assert not torch.equal(evaluate(building.mlp(context, 24, 2, folder=tmp_path)[0], x), drawn)


def test_rows_of_the_wide_layer_have_generators_of_their_own() -> None:
    own = SimpleNamespace(config=wide_time.CONFIG, hidden=9, inputs=3, tile=1, block_mib=1.0)
    numbers = wide_time.asked(own).numbers  # type: ignore[arg-type]
    height = numbers.DRAWN_ROWS
    runs = list(numbers.rows(9 * height + 5, 3))
    assert [len(run) for run in runs] == [height] * 9 + [5]
    gen = torch.Generator().manual_seed(1_000_003 * numbers.SEED + 9)
    assert torch.equal(runs[9], (2 * torch.rand(5, 3, generator=gen) - 1) / 3**0.5)
    assert len({float(run[0, 0]) for run in runs}) == 10


# -- the runner ------------------------------------------------------------------------------------------------------
def _rank() -> None:
    """What the ranks of these tests run: ``[--nap S] [--child] [--broken RANK] --out FILE``."""
    words, rank = sys.argv[1:], int(os.environ.get("RANK", "0"))
    began, out = time.monotonic(), Path(words[-1])
    if "--child" in words:
        child = subprocess.Popen(["sleep", "60"])
        out.with_name("child").write_text(f"{os.getpid()} {child.pid}")
    if "--broken" in words and rank == int(words[words.index("--broken") + 1]):
        sys.exit("broken")
    time.sleep(float(words[words.index("--nap") + 1]))
    told = {"began": began, "ended": time.monotonic(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
    told |= {"world": os.environ.get("WORLD_SIZE"), "omp": os.environ.get("OMP_NUM_THREADS"), "session": os.getsid(0)}
    told |= {"pid": os.getpid(), "cuda": torch.cuda.is_initialized(), "script": sys.argv[0]}
    with open(out, "a", encoding="utf-8") as file:
        file.write(json.dumps({**told, "rank": rank}) + "\n")


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A script that forks of this process find."""
    module = ModuleType("benchmarks.parallel.naps")
    module.main = _rank  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield "naps.py"
    gc.unfreeze()


def _tasks(script: str, *jobs: tuple[int, tuple[str, ...]], limit: float = 3.0) -> list[Task]:
    return [Task(5, Job(script, world, words, limit), world) for world, words in jobs]


def _lines(out: Path, world: str | None) -> list[dict[str, Any]]:
    return [one for one in read(out) if "began" in one and one["world"] == world]


@pytest.mark.parametrize("exclusive", [True, False])
def test_jobs_on_gpus(tmp_path: Path, exclusive: bool, naps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    out = tmp_path / "figures.jsonl"
    tasks = _tasks(naps, (1, ("--nap", "0.5")), (2, ("--nap", "0.51")), (4, ("--nap", "0.1")))
    runner = Runner(out, 3, 60.0, exclusive)
    runner.run(tasks)
    (first,), (second, third) = _lines(out, None), _lines(out, "2")
    assert (first["gpus"], second["gpus"], third["gpus"]) == ("4", *(["4,5" if exclusive else "5,6"] * 2))
    assert {second["rank"], third["rank"]} == {0, 1} and first["omp"] is None and second["omp"] == "1"
    assert all(one["session"] == one["pid"] != os.getpid() and not one["cuda"] for one in (first, second, third))
    assert first["script"] == str(HERE / naps)
    assert (min(second["began"], third["began"]) >= first["ended"]) == exclusive
    assert first["shared_host"] is second["shared_host"] is (not exclusive)
    (line,) = runner.wrong
    assert line.startswith("more ranks than GPUs")
    again = Runner(out, 3, 60.0, exclusive)
    again.run(tasks[:2])
    assert again.wrong == [] and sum("began" in one for one in read(out)) == 3
    assert "RANK" not in os.environ and os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,6"


def test_more_ranks_than_gpus_on_a_cpu(tmp_path: Path, naps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    out = tmp_path / "figures.jsonl"
    runner = Runner(out, 0, 60.0, exclusive=False)
    runner.run(_tasks(naps, (1, ("--nap", "0.2")), (3, ("--nap", "0.2"))))
    (first,), others = _lines(out, None), _lines(out, "3")
    assert runner.wrong == [] and len(others) == 3 and {one["gpus"] for one in (first, *others)} == {None}
    assert min(one["began"] for one in others) >= first["ended"]


def test_what_goes_wrong_is_told_and_leaves_nothing(tmp_path: Path, naps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that fails ends the others, one that hangs is ended with what it has started, and the list goes on."""
    monkeypatch.setattr(running, "GRACE_S", 0.3)
    out = tmp_path / "figures.jsonl"
    runner = Runner(out, 2, 30.0)
    broken, late = ("--broken", "1", "--nap", "60"), ("--child", "--nap", "60")
    began = time.monotonic()
    runner.run(_tasks(naps, (2, broken), (1, late), (1, ("--nap", "0.2")), limit=1.5))
    assert time.monotonic() - began < 1.4 + 1.5 + 0.2 + 2.5  # far from a nap
    assert [line.split()[0] for line in runner.wrong] == ["exit", "timed"]
    assert "exit code 1 after 0." in runner.wrong[0] and "broken" in runner.wrong[0]
    assert sum("began" in one for one in read(out)) == 1 and not list(tmp_path.glob(".figures*"))
    assert _gone(tmp_path / "child", 5.0)
    late_runner = Runner(tmp_path / "none.jsonl", 2, 5.0)
    late_runner.run(_tasks(naps, (1, ("--nap", "0"))))
    assert late_runner.wrong[0].startswith("not begun")


def _gone(numbers: Path, seconds: float) -> bool:
    """Whether the processes whose numbers stand in a file end within so many seconds."""
    until = time.monotonic() + seconds
    paths = [Path("/proc", number, "stat") for number in numbers.read_text().split()]
    while time.monotonic() < until:
        if not any(path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z" for path in paths):
            return True
        time.sleep(0.05)
    return False


def test_no_rank_is_forked_once_cuda_has_been_started(
    tmp_path: Path, naps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA has been started"):
        Runner(tmp_path / "figures.jsonl", 1, 30.0).run(_tasks(naps, (1, ("--nap", "0"))))
    assert not list(tmp_path.iterdir())


LOADED = """
import os, sys, threading
from pathlib import Path
import torch
from benchmarks.parallel.scaled import forking, running
def asked(*given, **named):
    raise AssertionError("the GPU was asked for")
names = ("_lazy_init", "is_available", "device_count", "current_device", "get_device_properties")
kept = {name: getattr(torch.cuda, name) for name in names}
for name in names:
    setattr(torch.cuda, name, asked)
before = len(os.listdir("/proc/self/task"))
forking.load(sys.argv[2:])
assert len(os.listdir("/proc/self/task")) == before and threading.active_count() == 1
assert not torch.cuda.is_initialized() and "triton" not in sys.modules
parent = os.getpid()
torch.cuda.device_count = lambda: asked() if os.getpid() == parent else 7
assert forking.gpus() == 7
for name, one in kept.items():
    setattr(torch.cuda, name, one)
from benchmarks.parallel.scaled.kinds import Task
from benchmarks.parallel.starting import Job
from tests.parallel import test_scaling
sys.modules["benchmarks.parallel.naps"] = type("naps", (), {"main": staticmethod(test_scaling._rank)})
job = Job("naps.py", 1, ("--child", "--nap", "60"), 60.0)
running.Runner(Path(sys.argv[1]), 1, 60.0).run([Task(5, job, 1)])
"""


def test_loading_asks_no_gpu_and_ranks_end_with_their_parent(tmp_path: Path) -> None:
    """All scripts of the study are imported before ranks are forked; then the parent is killed."""
    options = Options(worlds=(1, 2), reduced=True, repeats=1, data=tmp_path, models=tmp_path, configs=tmp_path)
    found = (one.tasks(options) for one in (wide.study(True), mlp.STUDY, residual.study(options)))
    scripts = {task.job.script for tasks in found for task in tasks} | {"bab_ranks.py"}
    assert len(scripts) == 6
    command = [sys.executable, "-c", LOADED, str(tmp_path / "figures.jsonl"), *sorted(scripts)]
    noted, log = tmp_path / "child", tmp_path / "log"
    with open(log, "w", encoding="utf-8") as file:
        parent = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
        try:
            until = time.monotonic() + 60
            while not (noted.exists() and noted.read_text().split()[1:]):
                assert parent.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.05)
        finally:
            parent.kill()
            parent.wait()
    rank, child = noted.read_text().split()
    noted.write_text(rank)
    assert _gone(noted, 5.0)
    os.kill(int(child), signal.SIGKILL)  # what a rank has started is ended by the runner, not by the system


def test_the_reference_and_the_most_ranks_come_first() -> None:
    tasks = [Task(5, Job("x", p, ()), p, extra) for extra in (True, False) for p in (1, 2, 4, 8)]
    assert [(task.extra, task.world) for task in in_order(tasks)] == [
        (False, 1), (False, 8), (False, 4), (False, 2), (True, 1), (True, 8), (True, 4), (True, 2)
    ]  # fmt: skip


def test_a_line_of_figures_is_one_json_object(tmp_path: Path, naps: str) -> None:
    out = tmp_path / "figures.jsonl"
    Runner(out, 1, 30.0).run(_tasks(naps, (1, ("--nap", "0"))))
    one, done = (json.loads(line) for line in out.read_text().splitlines())
    assert one["exp"] == 5 and one["host_gpus"] == 1 and done["done"].startswith("exp 5, P=1: ")
