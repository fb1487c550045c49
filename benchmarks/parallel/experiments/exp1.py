"""Experiment 1: memory of one very wide layer over a large batch, on one GPU and under tensor parallelism and FSDP."""

from __future__ import annotations

from collections.abc import Iterator

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

SCRIPT = "wide_time.py"
KEYS = ("mode", "loop", "clamped", "world")
ALONE, SEVERAL = ("single", "offload"), ("fsdp+rows", "tp", "rows")
LIMIT = 1e-5  # of tp and of the ordinary order, relative to 1 + |bound|
# Goals in MB of 2^20 bytes, as the peers' figures are: peak of one GPU, of a rank of two; and the peer's time.
PEAK_ALONE, PEAK_OF_TWO, PEER_MS = 4600.0, 2500.0, 384.0
PEER = ("upstream", "as a whole", 1, 4130, 26851, None, 384)
PAPER = (
    ("the paper, single", "", 1, None, 26826, 30874, None),
    ("the paper, TP", "", 2, None, 13513, 15512, None),
)


def jobs(options: Options) -> Iterator[Job]:
    """Every mode; on one GPU also boxes with unequal radii, and the ordinary order with everything in memory."""
    words = ["--models", str(options.models), "--config", str(options.configs / "exp1_wide.yaml")]
    if options.reduced:
        words += ["--inputs", "256", "--hidden", "8192", "--batch", "64", "--tile", "16", "--block-mib", "0.25"]
        words += ["--above-mib", "0", "--repeats", "1", "--warmup", "0"]
        for world in options.worlds:
            modes = ("fsdp+rows", "tp") if world > 1 else ("single", "offload")
            yield Job(SCRIPT, world, (*words, "--modes", *modes), 120.0)
        return
    words += ["--repeats", str(options.repeats)]
    for world in options.worlds:
        for mode in SEVERAL if world > 1 else ALONE:
            yield Job(SCRIPT, world, (*words, "--mode", mode), 300.0)
    yield Job(SCRIPT, 1, (*words, "--mode", "single", "--clamped"), 300.0)
    yield Job(SCRIPT, 1, (*words, "--mode", "single", "--ordinary"), 300.0)


def _each(figures: list[Figures]) -> list[Figures]:
    return list(latest(figures, *KEYS).values())


def _plain(figures: list[Figures]) -> list[Figures]:
    return [one for one in _each(figures) if one["loop"] == "blocks" and not one["clamped"]]


def _name(one: Figures) -> str:
    loop = " (boxes kept)" if one["loop"] == "rows" else ""
    return f"{one['mode']} P={one['world']}{loop}{' (clamped)' if one['clamped'] else ''}"


def tables(figures: list[Figures]) -> Iterator[Table]:
    """Memory and time beside the paper's and upstream's."""
    held = _each(figures)
    lines: list[tuple[object, ...]] = [(*known, None, None, None) for known in (*PAPER, PEER)]
    for one in held:
        loop = "boxes kept" if one["loop"] == "rows" else "block by block"
        mode = one["mode"] + (", boxes cut at 0 and 1" if one["clamped"] else "")
        lines.append((
            mode, loop, one["world"], one.get("weight_mib"), one.get("peak_mib"), one.get("reserved_mib"),
            one.get("ms"), one.get("traffic_share"), _blocks(one), one.get("relative"),
        ))  # fmt: skip
    header = ("mode", "order", "P", "weights MiB", "peak MiB", "reserved MiB", "ms", "share of traffic", "blocks",
              "relative to single")  # fmt: skip
    note = (
        "MB of the paper's and upstream's figures are 2^20 bytes. Large products (batch x inputs x hidden neurons):"
        " upstream 4 (centre, radius, and A of either bound), here 3, because the boxes of the batch have one radius,"
        " whose product is one vector's; 4 where they are cut at 0 and 1. blocks: fetched ones alive at once."
    )
    yield Table("Memory and time", header, lines if held else [], note)
    yield Table(
        "What the memory is used for, MiB",
        ("mode", "weights", "gathered", "input boxes", "rest", "peak"),
        [(_name(one), *parts.values(), one["peak_mib"]) for one in held if (parts := _parts(one))],
        "rest: A on the input, centres, the bounds and lines of a step, 32 MiB of cuBLAS.",
    )


def _blocks(one: Figures) -> object:
    return max(rank["live_blocks_max"] for rank in one["ranks"]) if one.get("ms") is not None else "out of memory"


def _parts(one: Figures) -> dict[str, float]:
    """Measured bytes of the rank with the highest peak."""
    found = [rank for rank in one["ranks"] if "peak_mib" in rank]
    if not found:
        return {}
    rank = max(found, key=lambda rank: rank["peak_mib"])
    parts = {
        "weights": 0.0 if one["mode"].startswith("offload") else rank["weight_mib"],
        "gathered": rank["gathered_mib"],
        "bounds": rank["region_mib"],
    }
    return {**parts, "rest": round(max(0.0, rank["peak_mib"] - sum(parts.values())), 1)}


def checks(figures: list[Figures]) -> Iterator[Check]:
    """Bits, soundness, and the goals."""
    held = _plain(figures)
    single = next((one for one in held if (one["mode"], one["world"]) == ("single", 1)), None)
    for one in _each(figures):
        if "outside" in one:
            yield equal(f"{_name(one)}: sampled outputs outside of their bounds", 0, one["outside"])
    for one in held:
        if one["mode"] == "tp":
            yield equal(f"{_name(one)}: all ranks have equal bits", 1, len(one["digests"]))
            yield at_most(f"{_name(one)}: difference relative to 1 + abs(bound)", LIMIT, one.get("relative"))
        elif single is not None and one is not single:
            yield equal(f"{_name(one)}: same bits as one GPU", True, one["digests"] == single["digests"])
    for one in _each(figures):
        if one["loop"] == "rows" and "relative" in one:
            yield at_most(f"{_name(one)}: difference relative to 1 + abs(bound)", LIMIT, one["relative"])
    for one in held:
        if one["mode"] == "single":
            yield at_most(f"{_name(one)}: peak MB", PEAK_ALONE, one.get("peak_mib"), goal=True)
        elif one["mode"] in ("fsdp+rows", "tp") and one["world"] == 2:
            yield at_most(f"{_name(one)}: peak MB of a rank", PEAK_OF_TWO, one.get("peak_mib"), goal=True)
        if one["device"] != "cpu" and one["mode"] != "offload":
            yield at_most(f"{_name(one)}: ms, the peer's on one GPU", PEER_MS, one.get("ms"), goal=True)


def charts(figures: list[Figures]) -> Iterator[Chart]:
    """Memory and time of every mode, and how time falls with the number of ranks."""
    held = [one for one in _each(figures) if one.get("ms") is not None]
    memory = tuple(Bar(_name(one), parts) for one in held if (parts := _parts(one)))
    yield Bars("memory", "4096 - 262144 - 1, batch 2048: memory of a rank", "MiB", memory)
    time = []
    for one in held:
        traffic = one["ms"] * min(1.0, one["traffic_share"])
        time.append(Bar(_name(one), {"computing": one["ms"] - traffic, "collectives and copies": traffic}))
    yield Bars("time", "4096 - 262144 - 1, batch 2048: time of a pass", "ms (traffic may be hidden)", tuple(time))
    lines = {}
    single = next((one for one in _plain(figures) if (one["mode"], one["world"]) == ("single", 1)), None)
    if single is not None and single.get("ms"):
        for mode in SEVERAL:
            points = [(one["world"], single["ms"] / one["ms"]) for one in _plain(figures) if one["mode"] == mode]
            if points:
                lines[mode] = ((1, 1.0), *points)
    yield Curves("scaling", "Times as fast as one GPU", "P", "times", lines)


EXPERIMENT = Experiment(
    number=1,
    title="memory under tensor parallelism",
    paper="4096 - ReLU(262144) - 1, CROWN, L_inf eps 0.01, batch 2048: a peak of 26826 MB on one GPU (reserved 30874),"
    " 13513 MB a rank under TP on two (15512): 1.985 times less",
    later="13513 / 6857 / 3528 MB on 1 / 2 / 4 GPUs at half the width, 546.6 / 287.7 / 156.5 ms; bounds of TP that"
    " looked useless were those of other weights",
    jobs=jobs,
    tables=tables,
    checks=checks,
    bars=charts,
)
