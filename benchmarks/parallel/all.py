"""Everything that is measured on two GPUs, one process a mode, in one go; resumable, with a table at the end.

    python benchmarks/parallel/all.py --out out/parallel.jsonl --budget 460 --onnx N.onnx --vnnlib P.vnnlib
    python benchmarks/parallel/all.py --out out/parallel.jsonl --show
    python benchmarks/parallel/all.py --tiny --out /tmp/tiny.jsonl      # shows on a CPU that every script works

Parts, in this order (`--parts` chooses): modes (memory and time, `table.py`), tp (error of tensor parallelism), large
(weights that exceed the memory), alpha (joint alpha-CROWN, rows sharded), bab (branch and bound, domains sharded); and
only if asked for, full: the ResNet-like net that the peer cannot hold, some minutes on one GPU.
What ``--out`` notes as done is not run again, so a second call goes on where the budget ended the first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.parallel import table  # noqa: E402
from benchmarks.parallel.experiments import exp2  # noqa: E402
from benchmarks.parallel.experiments.kinds import Check, at_least, at_most, equal, shown  # noqa: E402
from benchmarks.parallel.starting import Figures, Job, read, rows, run_jobs  # noqa: E402

CONFIGS = Path(__file__).resolve().parent.parent.parent / "exp_configs" / "parallel"
PARTS = ("modes", "tp", "large", "alpha", "bab", "full")


def main() -> None:
    """Run what is missing and print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/parallel.jsonl"))
    parser.add_argument("--budget", type=float, default=460.0, help="seconds")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[:-1]))
    parser.add_argument("--onnx", default="../shared/benchmarks/mnist_fc/onnx/mnist-net_256x6.onnx")
    parser.add_argument("--vnnlib", default="../shared/benchmarks/mnist_fc/vnnlib/prop_0_0.05.vnnlib")
    parser.add_argument("--width", default="16", help="of the ResNet-like net at which keep fits one GPU")
    parser.add_argument("--full-width", default="32")
    parser.add_argument("--full-seconds", default="inf", help="after which its optimisation stops")
    parser.add_argument("--repeats", default="3")
    parser.add_argument("--block-mib", default="16")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    wrong = [] if options.show else run_jobs(list(jobs(options)), options.out, options.budget)
    report(options.out)
    for line in wrong:
        print(line.splitlines()[0])
    sys.exit(1 if wrong else 0)


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """The scripts and what each is asked."""
    tiny, common = options.tiny, ("--block-mib", "0.002" if options.tiny else options.block_mib)
    if "modes" in options.parts:
        sizes = argparse.Namespace(
            nets=["64x3"] if tiny else list(table.NETS),
            tiles=["16"] if tiny else ["512", "2048"],
            large="" if tiny else table.LARGE,
            large_tiles=["512", "4096"],
            modes=[name for name, _ in table.MODES],
            repeats=options.repeats,
            block_mib=common[1],
        )
        yield from table.jobs(sizes)
    if "tp" in options.parts:
        yield from _tp_jobs(options.tiny)
    if "large" in options.parts:
        size = ("--h", "64", "--d", "3", "--tile", "16") if tiny else ()
        for mode, ranks in (("fsdp+rows", 2), ("offload", 1), ("single", 1)):
            yield Job("too_large.py", ranks, ("--mode", mode, *size, *common))
    if "alpha" in options.parts:
        small = ("--width", "1", "--classes", "5", "--iterations", "3", "--tile", "64", "--eps", "0.03")
        for ranks in (1, 2):
            yield Job("alpha_keep.py", ranks, small if tiny else ("--width", options.width), 240.0)
    if "full" in options.parts:
        for ranks in (2, 1):
            words = ("--width", options.full_width, "--seconds", options.full_seconds)
            yield Job("alpha_keep.py", ranks, words, 500.0)
    if "bab" in options.parts:
        files = ("--onnx", options.onnx, "--vnnlib", options.vnnlib)
        for ranks in (1, 2):
            rounds = ("--batch", "64", "--rounds", "2") if tiny else ("--batch", "4096", "--rounds", "10")
            yield Job("bab_ranks.py", ranks, (*files, "--schedule", "synchronous", *rounds))
        for ranks in (1, 2):
            words = ("--batch", "64", "--seconds", "5") if tiny else ("--batch", "4096", "--seconds", "20")
            yield Job("bab_ranks.py", ranks, (*files, "--schedule", "free", *words))


def _tp_jobs(tiny: bool) -> Iterator[Job]:
    """Networks of experiment 5 by both methods, on one rank and split over two."""
    nets = ("256x4",) if tiny else ("1024x4", "4096x4", "8192x4", "4096x8")
    configs = [str(CONFIGS / f"exp5_{net}.yaml") for net in nets]
    words = ["--exp", "5", "--methods", "IBP", "CROWN", "--tiles", "16" if tiny else "512", "--samples", "4096"]
    words += ["--repeats", "1", *(("--hidden", "64") if tiny else ())]
    for mode, ranks in (("single", 1), ("tp", 2)):
        yield Job("of_config.py", ranks, (*words, "--modes", mode, "--configs", *configs), 300.0)
    yield Job("of_config.py", 2, (*words, "--modes", "tp-ibp", "--configs", configs[0]))


def report(out: Path) -> None:
    """All tables."""
    figures = read(out)
    table.report(out)
    for what, columns in TABLES.items():
        lines = [[_cell(one, name) for name in columns] for one in figures if one.get("what") == what]
        if lines:
            print(f"\n{what}\n")
            print(rows(columns, lines))
    for one in exp2.tables(_bounds(figures)):
        if one.lines:
            print("\nbounds of tensor parallelism\n")
            print(rows(one.header, [[shown(cell) for cell in line] for line in one.lines]))
    print()
    print(table.told(goals(figures)))


def _bounds(figures: list[Figures]) -> list[Figures]:
    return [one for one in figures if one.get("what") == "of_config"]


TABLES = {
    "too_large": ("mode", "world", "weights_mib", "cap_mib", "peak_mib", "reserved_mib", "ms", "sound",
                  "out_of_memory"),
    "alpha_keep": ("width", "mode", "world", "unstable", "crown_sum", "lb_sum", "ms", "peak_mib", "reserved_mib",
                   "stored_mib of each rank", "traffic_share", "digests"),
    "bab_ranks": ("schedule", "batch", "world", "rounds", "domains", "domains_per_s", "worst_bound", "ms", "peak_mib",
                  "stored_mib of each rank", "transient_mib of each rank", "digests"),
}  # fmt: skip


def _cell(one: Figures, name: str) -> object:
    if name.endswith(" of each rank"):
        return " / ".join(str(rank.get(name.removesuffix(" of each rank"), "")) for rank in one["ranks"])
    value = one.get(name)
    return f"{value:.6g}" if isinstance(value, float) else value


def goals(figures: list[Figures]) -> Iterator[Check]:
    """The issue's goals outside the table of modes."""
    yield from exp2.checks(_bounds(figures))
    for one in figures:
        if one.get("what") == "too_large" and one["mode"] != "single":
            yield equal(f"{one['mode']}: bounded above the memory", True, one.get("sound", False))
    yield from _pairs(figures, "alpha_keep", ("width", "iterations"), _alpha_goals)
    yield from _pairs(figures, "bab_ranks", ("schedule", "batch"), _bab_goals)


def _pairs(figures: list[Figures], what: str, keys: tuple[str, ...], goal: object) -> Iterator[Check]:
    assert callable(goal)
    alone = {tuple(one[k] for k in keys): one for one in figures if one.get("what") == what and one["world"] == 1}
    for one in figures:
        single = alone.get(tuple(one.get(k) for k in keys))
        if one.get("what") == what and one["world"] == 2 and single is not None:
            yield from goal(single, one)


def _alpha_goals(single: Figures, two: Figures) -> Iterator[Check]:
    name = f"alpha keep, width {two['width']}"
    share = max(rank["stored_mib"] for rank in two["ranks"]) / max(1e-9, single["ranks"][0]["stored_mib"])
    yield at_most(f"{name}: stored row state as a share of one rank's", 0.52, share)
    if "peak_mib" in two:
        yield at_most(f"{name}: peak as a share", 0.60, two["peak_mib"] / single["peak_mib"])
    yield at_least(f"{name}: times as fast", 1.7, single["ms"] / two["ms"])
    yield equal(f"{name}: same bits", True, single["digests"] == two["digests"])


def _bab_goals(single: Figures, two: Figures) -> Iterator[Check]:
    name = f"bab {two['schedule']}, batch {two['batch']}"
    if two["schedule"] == "free":
        yield at_least(f"{name}: times the domains/s", 1.8, two["domains_per_s"] / single["domains_per_s"])
        return
    for key in ("domains", "rounds", "digests", "worst_bound"):
        yield equal(f"{name}: same {key}", single[key], two[key])
    share = max(rank["stored_mib"] for rank in two["ranks"]) / max(1e-9, single["ranks"][0]["stored_mib"])
    yield at_most(f"{name}: stored domain bytes as a share of one rank's", 0.52, share)


if __name__ == "__main__":
    main()
