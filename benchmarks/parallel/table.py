"""The table of modes: resident, peak, reserved and process memory, time and traffic, with the goals beside.

    python benchmarks/parallel/table.py --out figures.jsonl --budget 300
    python benchmarks/parallel/table.py --out figures.jsonl --show        # only prints what is there

One process per mode (torchrun for two ranks); runs that ``--out`` notes as done are not repeated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.parallel.experiments.kinds import Check, at_least, at_most, equal, shown  # noqa: E402
from benchmarks.parallel.starting import Figures, Job, read, rows, run_jobs  # noqa: E402

NETS = ("1024x4", "4096x4", "8192x4", "4096x8")
LARGE = "16384x4"
MODES = (("single", 1), ("offload", 1), ("fsdp", 2), ("fsdp+rows", 2), ("tp", 2))
WORKSPACE_MIB = 32.0  # of cuBLAS, which every peak contains
HEADER = ("net", "tile", "mode", "P", "weights MiB", "resident", "peak", "reserved", "process", "ms", "x single",
          "traffic MiB", "share", "blocks", "same bits")  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/parallel.jsonl"))
    parser.add_argument("--budget", type=float, default=300.0, help="seconds")
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--tiles", nargs="+", default=["512", "2048"])
    parser.add_argument("--large", default=LARGE, help="net that is measured with --large-tiles; '' leaves it out")
    parser.add_argument("--large-tiles", nargs="+", default=["512", "4096"])
    parser.add_argument("--modes", nargs="+", default=[name for name, _ in MODES])
    parser.add_argument("--block-mib", default="16")
    parser.add_argument("--repeats", default="3")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    wrong = [] if options.show else run_jobs(list(jobs(options)), options.out, options.budget)
    report(options.out)
    for line in wrong:
        print(line.splitlines()[0])
    sys.exit(1 if wrong else 0)


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Two a mode: the nets at both heights, and the large net."""
    common = ("--repeats", options.repeats, "--block-mib", options.block_mib)
    sizes = [(options.nets, options.tiles)] + ([([options.large], options.large_tiles)] if options.large else [])
    for nets, tiles in sizes:
        for mode, ranks in MODES:
            if mode in options.modes:
                words = ("--mode", mode, "--nets", *nets, "--tiles", *tiles, *common)
                yield Job("mem_time.py", ranks, words, 240.0)


def report(out: Path) -> None:
    """The table and the goals."""
    found: dict[tuple[str, str, str], Figures] = {}
    for one in read(out):
        if one.get("what") == "mem_time" and one["method"] == "CROWN":
            found[f"{one['h']}x{one['d']}", one["tile"], one["mode"]] = one
    lines = []
    for (net, tile, mode), one in found.items():
        single = found.get((net, tile, "single"))
        same = "" if single is None else ("yes" if one["digests"] == single["digests"] else "no")
        faster = "" if single is None else f"{single['ms'] / one['ms']:.2f}"
        blocks = max(rank["live_blocks_max"] for rank in one["ranks"])
        lines.append((net, tile, mode, one["world"], one["weight_mib"], one.get("resident_mib"), one.get("peak_mib"),
                      one.get("reserved_mib"), one.get("process_mib"), one["ms"], faster,
                      one["ranks"][0]["traffic_mib"], one["traffic_share"], blocks, same))  # fmt: skip
    print(rows(HEADER, lines))
    print()
    print(told(goals(found)))


def goals(found: dict[tuple[str, str, str], Figures]) -> Iterator[Check]:
    """What these figures have to show, by network, tile and mode; of experiment 5's too."""
    for (net, tile, mode), one in found.items():
        single = found.get((net, tile, "single"))
        if single is None or mode == "single":
            continue
        name = f"{mode} {net} tile {tile} P={one['world']}"
        if mode != "tp":
            yield equal(f"{name}: same bits", True, one["digests"] == single["digests"])
        if mode.startswith("fsdp"):
            limit = one["weights_mib"] / one["world"] + one["block_mib"]
            yield at_most(f"{name}: weight MiB a rank", limit, one["weight_mib"])
        if one["world"] <= 2:
            yield from _of_two(name, (net, tile, mode), one, single)


def _of_two(name: str, key: tuple[str, str, str], one: Figures, single: Figures) -> Iterator[Check]:
    """The goals for two GPUs."""
    net, tile, mode = key
    speed = single["ms"] / one["ms"]
    if mode == "fsdp+rows" and net in ("8192x4", "4096x8"):
        if tile == "512":
            yield at_most(f"{name}: peak MiB", {"8192x4": 573.0, "4096x8": 335.0}[net], one.get("peak_mib"), goal=True)
        yield at_least(f"{name}: times as fast as single", {"512": 1.4, "2048": 1.75}.get(tile, 0.0), speed, goal=True)
    if mode == "tp" and net in ("8192x4", "4096x8", "16384x4") and tile == "512" and "peak_mib" in single:
        share = one["peak_mib"] / single["peak_mib"]
        yield at_most(f"{name}: peak as a share of single's", 0.57, share, goal=True)
    if mode == "tp" and net == "8192x4":
        yield at_least(f"{name}: times as fast as single", {"512": 1.7, "2048": 1.8}.get(tile, 0.0), speed, goal=True)
    if mode == "offload" and net == "16384x4" and tile == "4096":
        yield at_most(f"{name}: time as a multiple of single's", 1.3, 1 / speed, goal=True)
        if "peak_mib" in single:
            tiles = single["peak_mib"] - single["resident_mib"]
            limit = 0.25 * one["weights_mib"] + WORKSPACE_MIB + tiles
            yield at_most(f"{name}: peak MiB", limit, one.get("peak_mib"), goal=True)


def told(checks: Iterable[Check]) -> str:
    """Goals as a table."""
    lines = [(check.what, check.wanted, check.measured, shown(check.met)) for check in checks]
    return rows(("goal", "wanted", "measured", "met"), lines)


if __name__ == "__main__":
    main()
