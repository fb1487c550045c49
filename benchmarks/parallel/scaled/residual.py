"""Experiment 8 over ranks: joint alpha-CROWN (`keep`) on residual networks, rows and weights shared out.

Strong scaling: experiment 8's large network and question (`resnet_make.py` makes them first). Weak scaling needs a
width that grows with P, which no training gives in seconds: `benchmarks/networks.resnet` with weights as torch draws
them, all 99 rows against one class. How many neurons are undecided is known only once a network has been bounded; the
model is asked with the number that the measurement found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.parallel.experiments.kinds import Options
from benchmarks.parallel.scaled.kinds import Ahead, Measured, Point, Predicted, Study, Task, number
from benchmarks.parallel.scaled.predicting import COUNTING, Shapes, as_predicted, counted
from benchmarks.parallel.starting import Figures, Job

ALONE, TOGETHER = ("single", "offload"), ("rows", "fsdp+rows", "fsdp", "offload+rows")
GROWN = ("rows", "fsdp+rows")  # under weak scaling
ASSUMED = 3990  # undecided neurons at WIDTH, as measured on H100s; on paper they grow with the width
TRAINED, NET, CONFIG = "trained", "large", "exp8_resnet_large.yaml"
REDUCED = ("parallel.tile_rows=6", "parallel.block_mib=0.002", "solver.alpha-crown.iteration=4",
           "solver.beta-crown.iteration=2", "solver.batch_size=8", "bab.max_iterations=2")  # fmt: skip
WIDTH, CLASSES, TILE, ITERATIONS, EPS = 16, 100, 64, 10, 0.00392157
SMALL_WIDTH, SMALL_CLASSES, SMALL_TILE, SMALL_ITERATIONS, SMALL_EPS = 1, 4, 16, 2, 0.03
BLOCK_MIB, SMALL_BLOCK_MIB = 16.0, 0.01
ENOUGH_S = 4  # no further pass of the trained network is measured after so many seconds of them
Predict = Callable[[Point], Predicted | None]


def tasks(options: Options) -> Iterator[Task]:
    """The network is made, then one process a mode; the widths that grow come last."""
    small, folder = options.reduced, _folder(options)
    sets = ("--sets", *REDUCED) if small else ()
    made = ("--names", NET, "--folder", str(folder), *(("--reduced",) if small else ()), *sets)
    yield Task(8, Job("resnet_make.py", 1, made, 300.0), 1)
    often = ("--repeats", "1") if small else ("--repeats", str(options.repeats), "--enough-s", str(ENOUGH_S))
    asked = ("--configs", str(options.configs / CONFIG), "--models", str(folder), *often, *sets)
    for world in options.worlds:
        for mode in TOGETHER if world > 1 else ALONE:
            extra = mode in ("fsdp", "offload+rows")
            yield Task(8, Job("resnet_modes.py", world, ("--modes", mode, *asked), 240.0), world, extra)
        for mode in GROWN if world > 1 else ALONE[:1]:
            yield Task(8, Job("alpha_keep.py", world, _keep(mode, world, small), 240.0), world, True)


def _folder(options: Options) -> Path:
    return options.models / ("exp8_reduced" if options.reduced else "exp8")


def _keep(mode: str, world: int, small: bool) -> tuple[str, ...]:
    keys = ("--classes", "--tile", "--iterations", "--eps", "--block-mib")
    chosen = (CLASSES, TILE, ITERATIONS, EPS, BLOCK_MIB)
    if small:
        chosen = (SMALL_CLASSES, SMALL_TILE, SMALL_ITERATIONS, SMALL_EPS, SMALL_BLOCK_MIB)
    words = (word for key, value in zip(keys, chosen, strict=True) for word in (key, str(value)))
    return ("--width", str(_grown(world, small)), "--mode", mode, *words)


def measured(predicted: Predict, figures: Iterable[Figures]) -> Iterator[Measured]:
    """Lines of `resnet_modes.py` and `alpha_keep.py`."""
    for one in figures:
        if one.get("exp") != 8 or one.get("what") not in ("resnet_modes", "alpha_keep"):
            continue
        trained = one["what"] == "resnet_modes"
        undecided = one["undecided" if trained else "unstable"]
        point = Point(
            exp=8,
            setting=TRAINED if trained else f"random weights, tile {one['tile']}",
            size=one["net"] if trained else f"width {one['width']}",
            mode=one["mode"],
            world=one["world"],
            undecided=undecided,
        )
        whole = predicted(replace(point, mode="single", world=1))
        stored = " / ".join(f"{rank['stored_mib']:.1f}" for rank in one["ranks"])
        verdict = f"{one['verdict']} by {one['by']}, " if trained else ""
        yield Measured(
            point=point,
            seconds=one["ms"] / 1e3,
            share=number(one, "traffic_share"),
            traffic_mib=max(number(rank, "traffic_mib") or 0.0 for rank in one["ranks"]),
            peak_mib=number(one, "peak_mib"),
            weight_mib=number(one, "weight_mib"),
            work=None if whole is None else whole.work,
            bits=(*one["digests"], undecided, one["lb_sum"], one.get("verdict"), one.get("domains")),
            near=(one["lb_sum"],),
            told=f"{verdict}{undecided} undecided, rows' state {stored} MiB",
            shared_host=bool(one.get("shared_host")),
            source=one,
        )


def weak(setting: str, world: int, reduced: bool) -> str | None:
    """Rows grow with the width and operations of a row with its square: the width grows with the third root of P."""
    return None if setting == TRAINED else f"width {_grown(world, reduced)}"


def _grown(world: int, reduced: bool) -> int:
    return SMALL_WIDTH if reduced else round(WIDTH * world ** (1 / 3))


def predict(options: Options, point: Point) -> Predicted | None:
    """The planner's model with the share of neurons that the measurement found undecided."""
    return _predict(options, point, point.undecided) if point.undecided else None


@cache
def _predict(options: Options, point: Point, undecided: int) -> Predicted | None:
    from auto_LiRPA.bounds.dry_run import Asked

    if point.setting == TRAINED:
        return _planned(_folder(options), options, point, undecided)
    small = options.reduced
    classes, tile, block = (SMALL_CLASSES, SMALL_TILE, SMALL_BLOCK_MIB) if small else (CLASSES, TILE, BLOCK_MIB)
    shapes = Shapes(_shapes, (int(point.size.removeprefix("width ")), classes))
    share = undecided / sum(_relu_sizes(shapes.graph()))
    asked = Asked(spec_rows=classes - 1, undecided=share, alpha="keep")
    iterations = SMALL_ITERATIONS if small else ITERATIONS
    return counted(shapes, point.mode, point.world, tile=tile, block_mib=block, asked=asked, iterations=iterations)


def _planned(folder: Path, options: Options, point: Point, undecided: int) -> Predicted | None:
    """`abcrown --plan --undecided` of the configuration; all iterations, though an earlier end is possible."""
    from complete_verifier.config import load_config
    from complete_verifier.driver.choices import bound_settings
    from complete_verifier.driver.planning import Place, Question, make_plan

    network, specification = folder / f"resnet_{NET}.onnx", folder / f"resnet_{NET}.vnnlib"
    if not network.exists() or not specification.exists():
        return None
    words = ["--config", str(options.configs / CONFIG)]
    for one in REDUCED if options.reduced else ():
        words += ["--set", one]
    loaded = load_config([*words, "--onnx_path", str(network), "--vnnlib_path", str(specification)])
    question = Question.of(loaded)
    share = undecided / sum(_relu_sizes(question.graph))
    where, _, rows = point.mode.partition("+")
    settings = replace(
        question.config.parallel.settings(),
        mode="auto",
        rows="shard" if "rows" in (where, rows) else "replicate",
        domains="replicate",
    )
    plan = make_plan(question, settings, Place(point.world, 80.0 * 2**30, COUNTING, "assumed GPU"), share)
    name = {"single": "replicated", "rows": "replicated"}.get(where, where)
    times = {"crown": 1, "alpha": bound_settings(question.config).alpha.iterations}
    return next((as_predicted(entry.prediction, times) for entry in plan.entries if entry.name == name), None)


def _shapes(width: int, classes: int) -> Any:
    from auto_LiRPA.parallel.context import DistributedContext
    from benchmarks.parallel import building

    return building.resnet(DistributedContext.single("cpu"), width, classes)[0]


def _relu_sizes(graph: Any) -> list[int]:
    from auto_LiRPA.operators.activation import Relu

    return [node.size for node in graph.nodes if isinstance(node.op, Relu)]


def ahead() -> Iterator[Ahead]:
    """What the tables on paper are about."""
    for mode in GROWN:
        yield Ahead(setting=TRAINED, mode=mode, size=_trained, weak=False)
        yield Ahead(setting=f"random weights, tile {TILE}", mode=mode, size=_wider, weak=True, undecided=_undecided)


def _none() -> Iterator[Ahead]:
    return iter(())


def _trained(world: int) -> str:
    return NET


def _wider(world: int) -> str:
    return f"width {_grown(world, False)}"


def _undecided(world: int) -> int:
    return ASSUMED * _grown(world, False) // WIDTH


def study(options: Options) -> Study:
    """The study at one of both sizes."""
    predicted = partial(predict, options)
    return Study(
        exp=8,
        title="joint alpha-CROWN on residual networks (strong: the trained one; weak: random weights)",
        grows="width with the third root of P: rows grow with it, operations of a row with its square",
        unit="operations of the busiest rank",
        tasks=tasks,
        measured=partial(measured, predicted),
        weak=weak,
        predict=predicted,
        ahead=_none if options.reduced else ahead,
    )
