"""Predicted against measured: peaks of memory, traffic and bytes of weights, one line a measurement.

    python benchmarks/parallel/plan_check.py figures.jsonl   # lines of mem_time.py, wide_time.py, benchmarks/bounds.py
    python benchmarks/parallel/plan_check.py --plan plan.json --stats stats.json    # --plan_json and --stats_file

Nothing is run: networks are known by their sizes. The exit code is 1 if a peak is off by more than the limit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from auto_LiRPA.bounds.dry_run import META, Asked, ShapeGraph, ShapeStore, examine  # noqa: E402
from auto_LiRPA.bounds.settings import BoundSettings  # noqa: E402
from auto_LiRPA.graph.ir import Graph, Node  # noqa: E402
from auto_LiRPA.operators.activation import Relu  # noqa: E402
from auto_LiRPA.operators.base import Input, Operator  # noqa: E402
from auto_LiRPA.operators.linear import Linear  # noqa: E402
from auto_LiRPA.parallel.axes import resolve_axes  # noqa: E402
from auto_LiRPA.parallel.memory_model import MIB, Prediction, predict  # noqa: E402
from auto_LiRPA.parallel.settings import ParallelSettings  # noqa: E402
from benchmarks.parallel.measuring import settings_of  # noqa: E402

LIMIT = 0.15


@dataclass(frozen=True)
class Line:
    """One comparison. ``limit``: whether it counts for the exit code."""

    what: str
    predicted: float
    measured: float
    unit: str
    counts: bool = True

    @property
    def off(self) -> float:
        """Relative difference."""
        return self.predicted / self.measured - 1 if self.measured else float(self.predicted != 0)

    def told(self) -> str:
        """As it is printed."""
        mark = "" if abs(self.off) <= LIMIT else "  <-- OFF" if self.counts else "  (off)"
        numbers = f"{self.predicted:10.1f} {self.measured:10.1f} {self.unit:4s} {100 * self.off:+7.1f} %"
        return f"{self.what:58s} {numbers}{mark}"


def mlp_shapes(hidden: int, depth: int, n_in: int = 784, n_out: int = 10, block_mib: float = 16.0) -> Graph:
    """The MLPs of the tables, without their weights."""
    store = ShapeStore(block_mib)
    nodes = [Node(0, "input", Input(), (), (n_in,))]

    def add(op: Operator, size: int) -> None:
        nodes.append(Node(len(nodes), f"n{len(nodes)}", op, (len(nodes) - 1,), (size,)))

    sizes = [n_in, *[hidden] * depth, n_out]
    for before, after in zip(sizes, sizes[1:], strict=False):
        weight = store.place(torch.empty(after, before, device=META))
        add(Linear(weight, torch.empty(after, device=META)), after)
        if len(nodes) < 2 * (depth + 1):
            add(Relu(), after)
    return Graph(tuple(nodes), len(nodes) - 1)


def prediction(hidden: int, depth: int, settings: ParallelSettings, world: int, asked: Asked) -> Prediction:
    """Of one rank."""
    shapes = ShapeGraph.of(mlp_shapes(hidden, depth, block_mib=settings.block_mib), settings)
    axes = resolve_axes(settings, world)
    if settings.mode == "tp":
        shapes = shapes.split(axes.weights)
    return predict(examine(shapes, torch.float32, asked), axes, world)


def wide_prediction(figure: dict[str, Any]) -> Prediction:
    """What the model says of a measured call of experiment 1: one very wide layer over a batch."""
    inputs, hidden, outputs = (int(size) for size in figure["net"].split("-"))
    settings = settings_of(figure["mode"], figure["tile"], figure["block_mib"])
    bounds = BoundSettings(compare_with_ibp=False)
    asked = Asked(
        batch=figure["batch"], boxes=figure["loop"] == "rows", one_radius=not figure["clamped"], bounds=bounds
    )
    axes = resolve_axes(settings, figure["world"])
    shapes = ShapeGraph.of(mlp_shapes(hidden, 1, inputs, outputs, settings.block_mib), settings)
    if settings.mode == "tp":
        shapes = shapes.split(axes.weights)
    return predict(examine(shapes, torch.float32, asked), axes, figure["world"])


def _size(figure: dict[str, Any]) -> tuple[Any, Any]:
    return figure.get("h", figure.get("hidden")), figure.get("d", figure.get("depth"))


def predicted(figure: dict[str, Any]) -> Prediction:
    """What the model says of a measured pass of CROWN over one of these networks."""
    hidden, depth = _size(figure)
    world, mode = figure.get("world", 1), figure.get("mode", "single")
    settings = settings_of(mode, figure["tile"], figure.get("block_mib", 16.0), figure.get("prefetch", True))
    if world > 1 and settings.rows == "replicate" and settings.mode in ("single", "offload"):
        settings, world = replace(settings, rows="auto", domains="auto"), 1  # every rank by itself
    return prediction(hidden, depth, settings, world, Asked())


def compared(figure: dict[str, Any]) -> Iterator[Line]:
    """The lines of one measurement."""
    if figure.get("what") == "wide_time" and figure.get("peak_mib") is not None:
        name = f"{figure['net']} x {figure['batch']} {figure['loop']} {figure['mode']} P={figure['world']}"
        yield Line(f"{name}: peak", wide_prediction(figure).peak / MIB, figure["peak_mib"], "MiB")
        return
    hidden, depth = _size(figure)
    if hidden is None or depth is None or figure.get("method", "CROWN") != "CROWN":
        return
    world, mode = figure.get("world", 1), figure.get("mode", "single")
    found = predicted(figure)
    name = f"({hidden}, {depth}) tile {figure['tile']} {mode} P={world}"
    if figure.get("peak_mib") is not None:
        yield Line(f"{name}: peak", found.peak / MIB, figure["peak_mib"], "MiB")
    if figure.get("weight_mib") is not None and mode != "offload":
        yield Line(f"{name}: weights", found.parts["weights"] / MIB, figure["weight_mib"], "MiB")
    work = found.work["crown"]
    for rank in figure.get("ranks", [])[:1]:
        moved = sum(one["mib"] for kind, one in rank["traffic"].items() if kind not in ("agree", "objects"))
        expected = (work.gathered + work.exchanged + work.copied) / MIB
        yield Line(f"{name}: traffic", expected, moved, "MiB", counts=False)
    if figure.get("ms") is not None and figure.get("device") != "cpu":
        yield Line(f"{name}: computing alone, time", 1e3 * work.compute_s, figure["ms"], "ms", counts=False)


def of_run(plan: dict[str, Any], statistics: dict[str, Any]) -> Iterator[Line]:
    """A run of the command against the plan of the same question."""
    mode = statistics["parallel"]["mode"]
    name = "replicated" if mode == "single" else mode
    entry = plan["placements"][name]
    for rank in statistics["ranks"]:
        place = f"{plan['network']} {name} rank {rank['rank']}"
        yield Line(f"{place}: peak", entry["peak_mib"], rank["peak_allocated_mib"], "MiB")
        if mode != "offload":
            yield Line(f"{place}: weights", entry["parts_mib"]["weights"], rank["weight_mib"], "MiB")


def main() -> int:
    """Print all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", nargs="*", type=Path)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--stats", type=Path)
    options = parser.parse_args()
    lines: list[Line] = []
    for path in options.figures:
        for text in path.read_text().splitlines():
            if text.startswith("{"):
                lines += compared(json.loads(text))
    if options.plan and options.stats:
        lines += of_run(json.loads(options.plan.read_text()), json.loads(options.stats.read_text()))
    print(f"{'':58s} {'predicted':>10s} {'measured':>10s}")
    for line in lines:
        print(line.told())
    return int(any(line.counts and abs(line.off) > LIMIT for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
