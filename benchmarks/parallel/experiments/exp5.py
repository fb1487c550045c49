"""Experiment 5: memory and time of CROWN under every mode, and what the memory is used for."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.parallel import table
from benchmarks.parallel.experiments import bounds
from benchmarks.parallel.experiments.kinds import (
    Bar,
    Bars,
    Chart,
    Check,
    Curves,
    Experiment,
    Figures,
    Job,
    Options,
    Table,
    at_most,
    equal,
    latest,
)

NETS = ("256x4", "1024x4", "4096x4", "8192x4", "4096x8")
ALONE, SEVERAL = ("single", "offload"), ("fsdp", "fsdp+rows", "rows", "tp")
PARTS = ("weights", "gathered", "A", "alpha", "bounds", "rest")
MIB = 2**20
LIMIT = 1e-5  # of tp, relative to 1 + abs(bound)
# The paper's weights of one GPU and of a rank, its published peaks, and those that its authors measured later (MB).
PAPER = {
    "256x4": ("1.5 / 0.8", "", ""),
    "1024x4": ("15.1 / 7.6", "", "149.6 / 205.2"),
    "4096x4": ("204.5 / 102.3", "3800 / 2527", "1944.9 / 2526.9"),
    "8192x4": ("792.9 / 396.5", "14759 / 9782", "7593.9 / 9781.7"),
    "4096x8": ("460.5 / 230.3", "16726 / 10232", "7934.0 / 10232.0"),
}


def jobs(options: Options) -> Iterator[Job]:
    """Every mode, at two heights of tiles."""
    if options.reduced:
        words = ("--hidden", "48", "--tiles", "16", "--block-mib", "0.004", "--split")
        return bounds.jobs(5, options, ALONE, SEVERAL, words, ["exp5_256x4"])
    names = [f"exp5_{net}" for net in NETS]
    return bounds.jobs(5, options, ALONE, SEVERAL, ("--tiles", "512", "2048", "--split"), names)


def _each(figures: list[Figures]) -> list[Figures]:
    """The last of equal ones, by network, tile and mode."""
    order = {mode: number for number, mode in enumerate((*ALONE, *SEVERAL))}
    found = latest(figures, *bounds.KEYS).values()
    nets = list(dict.fromkeys(one["net"] for one in found))
    return sorted(found, key=lambda one: (nets.index(one["net"]), one["tile"], order[one["mode"]], one["world"]))


def tables(figures: list[Figures]) -> Iterator[Table]:
    """The paper's table, all modes, and the parts of the memory, measured and modelled."""
    held = _each(figures)
    alone = bounds.single_of(held)
    yield Table(
        "The paper's comparison: one GPU / a rank of FSDP",
        ("net", "tile", "P", "weights MiB", "the paper's", "peak MiB", "peak as published", "peak as measured later"),
        [
            (one["net"], one["tile"], one["world"], f"{single['weight_mib']:.1f} / {one['weight_mib']:.1f}",
             PAPER.get(one["net"], ("",) * 3)[0], _two(single, one, "peak_mib"), *PAPER.get(one["net"], ("",) * 3)[1:])
            for one, single in bounds.against_single(held) if one["mode"] == "fsdp"
        ],
        "As published and as measured later: single / FSDP=2, in MB of 2^20 bytes; their bounding has no tiles.",
    )  # fmt: skip
    lines = []
    for one in held:
        single = alone.get((one["net"], one["method"], one["tile"]))
        faster = None if single is None else single["ms"] / one["ms"]
        lines.append((
            one["net"], one["tile"], one["mode"], one["world"], one["weight_mib"], one.get("resident_mib"),
            one.get("peak_mib"), one.get("reserved_mib"), one.get("process_mib"), one["ms"], faster,
            one["ranks"][0]["traffic_mib"], one["traffic_share"],
            max(rank["live_blocks_max"] for rank in one["ranks"]),
            None if single is None or one["mode"] == "tp" else bounds.same_bits(one, single),
        ))  # fmt: skip
    yield Table(
        "All modes",
        table.HEADER,
        lines,
        "x single: times as fast as one GPU at the same tile. traffic: of a rank and pass; share: its time against the"
        " pass's, of which prefetching hides a part. Empty: bits of tp need not be those of one GPU.",
    )
    yield _parts_table(held)
    yield _model_table(held)


def _two(single: Figures, one: Figures, key: str) -> str:
    return f"{single[key]:.1f} / {one[key]:.1f}" if key in single and key in one else ""


def _parts_table(held: list[Figures]) -> Table:
    lines = [
        (one["net"], one["tile"], one["mode"], one["world"], *(_largest(one).get(name) for name in PARTS),
         one.get("peak_mib"))
        for one in held
    ]  # fmt: skip
    note = (
        "Of the rank with the largest sum. Measured bytes: weights (storages), gathered (the two buffers of blocks),"
        " A and bounds (tensors alive at the most of a counting pass, by their form: `parts.py`), peak"
        " (the allocator's). rest is the peak without them: cuBLAS's workspace, recorded graphs, biases, rounding."
    )
    header = ("net", "tile", "mode", "P", *(f"{name} MiB" for name in PARTS), "peak MiB")
    return Table("What the memory is used for, measured", header, lines, note)


def _model_table(held: list[Figures]) -> Table:
    from benchmarks.parallel import plan_check  # imports torch

    names = ("weights", "blocks", "bounds", "tile", "constants", "workspace")
    lines = []
    for one in held:
        found = plan_check.predicted(one)
        peak = found.peak / MIB
        off = f"{100 * (peak / one['peak_mib'] - 1):+.1f} %" if one.get("peak_mib") else None
        sizes = (found.parts[name] / MIB for name in names)
        lines.append((one["net"], one["tile"], one["mode"], one["world"], *sizes, peak, one.get("peak_mib"), off))
    note = "Arithmetic of `auto_LiRPA/parallel/memory_model.py` (`--plan`) for an H100, beside the measured peak."
    header = ("net", "tile", "mode", "P", *names, "predicted peak", "measured", "off")
    return Table("The model's memory, MiB", header, lines, note)


def _largest(one: Figures) -> dict[str, float]:
    found = [rank["parts_mib"] for rank in one["ranks"] if "parts_mib" in rank]
    return max(found, key=lambda parts: sum(parts.values())) if found else {}


def checks(figures: list[Figures]) -> Iterator[Check]:
    """Bits, and the goals for two GPUs."""
    held = _each(figures)
    for one, single in bounds.against_single(held):
        if one["mode"] == "tp":
            name = f"{bounds.name_of(one)}: difference relative to 1 + abs(bound)"
            yield at_most(name, LIMIT, bounds.relative(one, single))
            yield equal(f"{bounds.name_of(one)}: all ranks have equal bits", True, bounds.ranks_agree(one))
    for world in sorted({one["world"] for one in held if one["world"] > 1}):
        found = {(one["net"], str(one["tile"]), one["mode"]): one for one in held if one["world"] in (1, world)}
        yield from table.goals(found)


def charts(figures: list[Figures]) -> Iterator[Chart]:
    """Memory and time of every mode, a picture a network; how time falls with the number of ranks."""
    held = _each(figures)
    for net in dict.fromkeys(one["net"] for one in held):
        mine = [one for one in held if one["net"] == net]
        memory = tuple(Bar(_label(one), {name: _largest(one).get(name, 0.0) for name in PARTS}) for one in mine)
        yield Bars(f"memory_{net}", f"({net.replace('x', ', ')}): memory of a rank", "MiB", memory)
        time = tuple(Bar(_label(one), _time_parts(one)) for one in mine)
        yield Bars(f"time_{net}", f"({net.replace('x', ', ')}): time of a pass", "ms (traffic may be hidden)", time)
    lines = {}
    for net, tile in dict.fromkeys((one["net"], one["tile"]) for one in held):
        single = next((one for one in held if (one["net"], one["tile"], one["mode"]) == (net, tile, "single")), None)
        for mode in SEVERAL:
            found = [one for one in held if (one["net"], one["tile"], one["mode"]) == (net, tile, mode)]
            if single is not None and found and net in ("8192x4", "4096x8"):
                points = ((one["world"], single["ms"] / one["ms"]) for one in found)
                lines[f"({net}) {mode} tile {tile}"] = ((1, 1.0), *points)
    yield Curves("scaling", "Times as fast as one GPU", "P", "times", lines)


def _label(one: Figures) -> str:
    return f"{one['mode']} P={one['world']} tile {one['tile']}"


def _time_parts(one: Figures) -> dict[str, float]:
    traffic = one["ms"] * min(1.0, one["traffic_share"])
    return {"computing": one["ms"] - traffic, "collectives and copies": traffic}


EXPERIMENT = Experiment(
    number=5,
    title="memory under FSDP",
    paper="FSDP on two GPUs halves the weights and takes 34 to 39 % off the peak: 3800 to 2527 MB at (4096,4), 14759 to"
    " 9782 at (8192,4), 16726 to 10232 at (4096,8)",
    later="the fall was an artefact of two modes in one process: FSDP raises the peak by 26 to 34 % (1944.9 to 2526.9"
    " MB at (4096,4)), more ranks do not help, and a pass takes 1.28 to 3.2 times as long",
    jobs=jobs,
    tables=tables,
    checks=checks,
    bars=charts,
)
