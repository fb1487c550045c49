"""Experiment 6 over ranks: branch and bound with sub-problems shared out, synchronous and free-running."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.parallel.experiments.kinds import Options
from benchmarks.parallel.scaled.kinds import Ahead, Measured, Point, Predicted, Study, Task, number
from benchmarks.parallel.scaled.predicting import COUNTING, as_predicted
from benchmarks.parallel.starting import Figures, Job

SYNCHRONOUS, FREE = "synchronous", "free-running"
STRONG, BASE, ROUNDS, SECONDS = 16384, 4096, 10, 5  # BASE: parents a round at P=1, weak scaling, synchronous
SMALL_STRONG, SMALL_BASE, SMALL_ROUNDS, SMALL_SECONDS = 96, 48, 3, 1
SMALL_JOB = 24  # sub-problems that one rank bounds together in the synchronous schedule, reduced
ENOUGH_S = 5  # no further search is measured after so many seconds of them
BLOCK_MIB, SMALL_BLOCK_MIB = 16.0, 0.3
NET, SMALL_NET, PROPERTY = "mnist-net_256x6.onnx", "mnist-net_256x2.onnx", "prop_0_0.05.vnnlib"
CONFIG = "exp6_bab_4096.yaml"
ALONE, TOGETHER = ("single", "offload"), ("domains", "fsdp+domains", "offload+domains")
PLACEMENTS = {"domains": "replicated", "single": "replicated", "fsdp": "fsdp", "offload": "offload", "tp": "tp"}
MILLION = 1_000_000


@dataclass(frozen=True)
class Files:
    """One question."""

    network: Path
    specification: Path

    @classmethod
    def of(cls, data: Path, reduced: bool) -> Files:
        """Of the folder of benchmarks."""
        folder = data / "mnist_fc"
        return cls(folder / "onnx" / (SMALL_NET if reduced else NET), folder / "vnnlib" / PROPERTY)

    @property
    def words(self) -> tuple[str, ...]:
        """As a script takes them."""
        return ("--onnx", str(self.network), "--vnnlib", str(self.specification))


def tasks(options: Options) -> Iterator[Task]:
    """Synchronous: both sizes in one process. Free-running: the batch is a rank's own."""
    files = Files.of(options.data, options.reduced)
    if not files.network.exists():
        return
    strong, base = (SMALL_STRONG, SMALL_BASE) if options.reduced else (STRONG, BASE)
    head = ("--config", str(options.configs / CONFIG), *files.words)
    if options.reduced:
        rounds = ("--set", f"bab.max_iterations={SMALL_ROUNDS}", "solver.beta-crown.iteration=3")
        head = (*head, *rounds, "--block-mib", str(SMALL_BLOCK_MIB), "--job", str(SMALL_JOB))
    often = ("--repeats", "1" if options.reduced else str(options.repeats), "--enough-s", str(ENOUGH_S))
    for world in options.worlds:
        sizes = tuple(str(size) for size in dict.fromkeys((strong, base * world)))
        own = tuple(str(size) for size in dict.fromkeys((strong, max(1, strong // world))))
        for mode in TOGETHER if world > 1 else ALONE:
            plain = mode in ("single", "domains")
            words = (*head, "--placements", mode, "--batch", *sizes, *often)
            yield Task(6, Job("bab_ranks.py", world, words, 240.0), world, extra=mode.startswith("offload"))
            if plain:
                seconds = str(SMALL_SECONDS if options.reduced else SECONDS)
                words = (*head, "--placements", mode, "--schedule", "free", "--batch", *own, "--seconds", seconds)
                yield Task(6, Job("bab_ranks.py", world, words, 240.0), world)


def measured(figures: Iterable[Figures]) -> Iterator[Measured]:
    """Lines of `bab_ranks.py`. Free-running searches have no end: the time of a million sub-problems stands for it."""
    for one in figures:
        if one.get("what") != "bab_ranks" or one.get("exp") != 6:
            continue
        world, free = one["world"], one["schedule"] == "free"
        batch = one["batch"] * (world if free else 1)
        setting = FREE if free else SYNCHRONOUS
        bits = (*one["digests"], one["domains"], one["rounds"], one["worst_bound"])
        yield Measured(
            point=Point(
                exp=6,
                setting=setting,
                size=f"batch {batch}",
                mode=one["mode"],
                world=world,
                undecided=int(one["ranks"][0].get("columns", 0)),
                left_open=max(int(rank.get("open", 0)) for rank in one["ranks"]) if free else 0,
            ),
            seconds=MILLION / max(1, one["domains_per_s"]) if free else one["ms"] / 1e3,
            share=number(one, "traffic_share"),
            traffic_mib=max(number(rank, "traffic_mib") or 0.0 for rank in one["ranks"]),
            peak_mib=number(one, "peak_mib"),
            weight_mib=number(one, "weight_mib"),
            work=MILLION if free else one["domains"],
            bits=None if free else bits,
            told=f"{one['domains_per_s']} sub-problems/s, {one['domains']} in {one['rounds']} rounds, unknown",
            shared_host=bool(one.get("shared_host")),
            source=one,
        )


def weak(setting: str, world: int, reduced: bool) -> str:
    """The batch grows with P."""
    if setting == FREE:
        return f"batch {(SMALL_STRONG if reduced else STRONG) * world}"
    return f"batch {(SMALL_BASE if reduced else BASE) * world}"


def predict(files: Files, reduced: bool, point: Point) -> Predicted | None:
    """What `abcrown --plan` says of the same question and settings; nothing is taken to be closed.

    What a free-running search leaves open follows from its rounds, which only a measurement tells: without one, what
    the first full round leaves. Work of the synchronous schedule: of all its rounds, the first of which are not full.
    """
    batch = int(point.size.removeprefix("batch "))
    free = point.setting == FREE
    rounds = -1 if free else SMALL_ROUNDS if reduced else ROUNDS
    block = SMALL_BLOCK_MIB if reduced else BLOCK_MIB
    per_round = batch // point.world if free else batch
    left_open = point.left_open if free else 0
    planned = _plan(files, per_round, rounds, point.world, block, point.undecided, left_open)
    found = planned.by_name.get(PLACEMENTS[point.mode.partition("+")[0]])
    if found is None:  # a plan for one rank shares no weights: alone, fsdp is single
        found = planned.by_name["replicated"]
    predicted = as_predicted(found, {"bab": 1})
    if free:
        return replace(predicted, work=MILLION / point.world, gathered=0.0, exchanged=0.0, calls=0.0)
    full = planned.parents / batch  # rounds
    height = SMALL_JOB if reduced else planned.tile
    jobs = -(-2 * batch // height)
    busiest = -(-jobs // point.world) * min(height, 2 * batch)
    return replace(
        predicted,
        work=busiest * full,
        gathered=predicted.gathered * full,
        copied=predicted.copied * full,
        calls=predicted.calls * rounds,
    )


@dataclass(frozen=True)
class _Planned:
    """Predictions by placement; parents of all rounds, and children of a job on a GPU, in the synchronous schedule."""

    by_name: dict[str, Any]
    parents: int
    tile: int


@cache
def _plan(
    files: Files, batch: int, rounds: int, world: int, block_mib: float, undecided: int, left_open: int
) -> _Planned:
    """``undecided``: neurons; 0: the planner's assumption. ``left_open``: 0: not known."""
    import torch

    from complete_verifier.bab.search import synchronous_tile
    from complete_verifier.driver.choices import bab_settings
    from complete_verifier.driver.planning import UNDECIDED, Place, make_plan
    from complete_verifier.driver.search_memory import Growth

    question = _question(files, batch, rounds, block_mib)
    settings = replace(question.config.parallel.settings(), mode="auto", domains="auto")
    share = undecided / question.columns if undecided else UNDECIDED
    place = Place(world, 80.0 * 2**30, COUNTING, "assumed GPU")
    plan = make_plan(question, settings, place, share, left_open or None)
    return _Planned(
        {entry.name: entry.prediction for entry in plan.entries},
        Growth.of(question.clauses, bab_settings(question.config), max(0, rounds)).parents,
        synchronous_tile(question.graph, torch.device("cuda")),
    )


def _question(files: Files, batch: int, rounds: int, block_mib: float) -> Any:
    from complete_verifier.config import load_config
    from complete_verifier.driver.planning import Question

    chosen = {
        "bab.force_synchronous": "true" if rounds > 0 else "false",
        "bab.max_iterations": str(rounds),
        "solver.batch_size": str(batch),
        "solver.beta-crown.iteration": "20",
        "solver.alpha-crown.iteration": "20",
        "parallel.block_mib": str(block_mib),
    }
    words = ["--onnx_path", str(files.network), "--vnnlib_path", str(files.specification)]
    for key, value in chosen.items():
        words += ["--set", f"{key}={value}"]
    return Question.of(load_config(words))


def ahead() -> Iterator[Ahead]:
    """What the tables on paper are about."""
    # with shared weights it is the same search: they are gathered once
    yield Ahead(setting=SYNCHRONOUS, mode="domains", size=_strong, weak=False)
    yield Ahead(setting=SYNCHRONOUS, mode="domains", size=partial(_weak, SYNCHRONOUS), weak=True)
    yield Ahead(setting=FREE, mode="domains", size=_strong, weak=False)
    yield Ahead(setting=FREE, mode="domains", size=partial(_weak, FREE), weak=True)


def _strong(world: int) -> str:
    return f"batch {STRONG}"


def _weak(setting: str, world: int) -> str:
    return weak(setting, world, reduced=False)


def study(data: Path, reduced: bool) -> Study:
    """The study of the question in the folder of benchmarks."""
    files = Files.of(data, reduced)
    present = files.network.exists() and files.specification.exists()
    return Study(
        exp=6,
        title=f"branch and bound, {files.network.name} {files.specification.name}, the paper's fair settings",
        grows="batch with P (parents a round of all ranks together)",
        unit="sub-problems of the busiest rank",
        tasks=tasks,
        measured=measured,
        weak=weak,
        predict=partial(predict, files, reduced) if present else lambda point: None,
        ahead=ahead if present else lambda: (),
        apart=lambda setting: setting == FREE,
    )
