"""The scaling study: what it runs, how it goes on, what its checks catch, and its time model on laws that are known."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from auto_LiRPA.bounds.dry_run import Asked
from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.numerics import full_precision
from auto_LiRPA.values import Box
from benchmarks.live_bytes import LiveBytes
from benchmarks.parallel import building, plan_check, wide_time
from benchmarks.parallel.measuring import settings_of
from benchmarks.parallel.scaled import mlp, predicting, report, timing, wide
from benchmarks.parallel.scaled.kinds import MIB, Measured, Point, Predicted, Task, in_order
from benchmarks.parallel.scaled.running import Runner
from benchmarks.parallel.starting import Job, read
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


@pytest.mark.parametrize(("tile", "block_mib"), [(32, 0.25), (128, 2.0)])  # the weights' share decides, the boxes'
def test_the_wide_layers_memory(tmp_path: Path, tile: int, block_mib: float) -> None:
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
    point = Point(exp=1, setting="", size="h 4096", mode="single", world=1)
    found = wide.predict(wide.Layer(256, 256, tile, block_mib), point)
    assert found.parts["rows"] + found.parts["tile"] == pytest.approx(live.peak, rel=0.05)


# -- the runner ------------------------------------------------------------------------------------------------------
SCRIPT = """
import json, os, sys, time
began = time.monotonic()
time.sleep(float(sys.argv[1]))
if len(sys.argv) > 4: sys.exit("broken")
rank = int(os.environ.get("RANK", "0"))
if rank == 0:
    line = {"began": began, "ended": time.monotonic(), "gpus": os.environ["CUDA_VISIBLE_DEVICES"],
            "world": os.environ.get("WORLD_SIZE", "1")}
    open(sys.argv[sys.argv.index("--out") + 1], "a").write(json.dumps(line) + "\\n")
"""


def _tasks(folder: Path, *jobs: tuple[int, tuple[str, ...]]) -> list[Task]:
    script = folder / "sleeps.py"
    script.write_text(SCRIPT)
    return [Task(5, Job(str(script), world, words, 3.0), world) for world, words in jobs]


@pytest.mark.parametrize("exclusive", [True, False])
def test_jobs_on_gpus(tmp_path: Path, exclusive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    out = tmp_path / "figures.jsonl"
    tasks = _tasks(tmp_path, (1, ("0.5",)), (2, ("0.51",)), (4, ("0.1",)))
    runner = Runner(out, 3, 60.0, exclusive)
    runner.run(tasks)
    first, second = sorted((one for one in read(out) if "began" in one), key=lambda one: one["world"])
    assert (first["gpus"], second["gpus"], second["world"]) == ("4", "4,5" if exclusive else "5,6", "2")
    assert (second["began"] >= first["ended"]) == exclusive
    assert first["shared_host"] is second["shared_host"] is (not exclusive)
    (line,) = runner.wrong
    assert line.startswith("more ranks than GPUs")
    again = Runner(out, 3, 60.0, exclusive)
    again.run(tasks[:2])
    assert again.wrong == [] and sum("began" in one for one in read(out)) == 2


def test_what_goes_wrong_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "figures.jsonl"
    runner = Runner(out, 2, 14.0)
    late = replace(_tasks(tmp_path, (1, ("60",)))[0].job, timeout_s=0.7)
    runner.run([*_tasks(tmp_path, (2, ("0", "broken"))), Task(5, late, 1), *_tasks(tmp_path, (1, ("0.2",))) * 1])
    assert [line.split()[0] for line in runner.wrong] == ["exit", "timed"]
    assert "broken" in runner.wrong[0]
    assert sum("began" in one for one in read(out)) == 1 and not list(tmp_path.glob(".figures*"))
    late_runner = Runner(tmp_path / "none.jsonl", 2, 5.0)
    late_runner.run(_tasks(tmp_path, (1, ("0",))))
    assert late_runner.wrong[0].startswith("not begun")


def test_the_reference_and_the_most_ranks_come_first() -> None:
    tasks = [Task(5, Job("x", p, ()), p, extra) for extra in (True, False) for p in (1, 2, 4, 8)]
    assert [(task.extra, task.world) for task in in_order(tasks)] == [
        (False, 1), (False, 8), (False, 4), (False, 2), (True, 1), (True, 8), (True, 4), (True, 2)
    ]  # fmt: skip


def test_a_line_of_figures_is_one_json_object(tmp_path: Path) -> None:
    out = tmp_path / "figures.jsonl"
    Runner(out, 1, 30.0).run(_tasks(tmp_path, (1, ("0",))))
    one, done = (json.loads(line) for line in out.read_text().splitlines())
    assert one["exp"] == 5 and one["host_gpus"] == 1 and done["done"].startswith("exp 5, P=1: ")
