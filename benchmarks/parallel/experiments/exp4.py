"""Experiment 4: output bounds under FSDP against those of one GPU: the same bits."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.parallel.experiments import bounds
from benchmarks.parallel.experiments.kinds import Check, Experiment, Figures, Job, Options, Table, at_most, equal

METHODS = ("IBP", "CROWN")


def jobs(options: Options) -> Iterator[Job]:
    """Every placement that has to leave the bits as they are."""
    words = ("--methods", *METHODS)
    return bounds.jobs(4, options, ("single", "offload"), ("fsdp", "rows", "fsdp+rows", "offload+rows"), words)


def tables(figures: list[Figures]) -> Iterator[Table]:
    """Differences, digests, and that something was shared out at all."""
    lines = [
        (
            one["net"], one["method"], one["mode"], one["world"], f"{bounds.difference(one, single, 'lower'):.2f}",
            f"{bounds.difference(one, single, 'upper'):.2f}", bounds.same_bits(one, single), single["weight_mib"],
            one["weight_mib"], max(rank["live_blocks_max"] for rank in one["ranks"]), one["ms"], single["ms"],
        )
        for one, single in bounds.against_single(figures)
    ]  # fmt: skip
    header = ("net", "method", "mode", "P", "lower", "upper", "same bits", "weights MiB", "of a rank", "blocks alive",
              "ms", "ms of one")  # fmt: skip
    note = (
        "lower, upper: largest difference from one GPU. Same bits: SHA-256 of the bounds of every rank. Under offload"
        " the weights of a rank are in the host's memory."
    )
    yield Table("eps 0.02, inputs within [0, 1]", header, lines, note)


def checks(figures: list[Figures]) -> Iterator[Check]:
    """No difference at all; under FSDP a rank has its share of the weights."""
    for one, single in bounds.against_single(figures):
        name = bounds.name_of(one)
        differences = [bounds.difference(one, single, side) for side in ("lower", "upper")]
        yield equal(f"{name}: difference of lower and upper bounds", [0.0, 0.0], differences)
        yield equal(f"{name}: same bits on all ranks", True, bounds.same_bits(one, single))
        if one["mode"].startswith("fsdp"):
            limit = single["weight_mib"] / one["world"] + one["block_mib"]
            yield at_most(f"{name}: weight MiB of a rank", limit, one["weight_mib"])


EXPERIMENT = Experiment(
    number=4,
    title="bounds under FSDP",
    paper="bounds under FSDP differ from those of one GPU by exactly 0.00 (torch 256x2, x4, x6 with IBP and CROWN, ONNX"
    " 256x2, x4 with CROWN)",
    later="the same, if every rank uses the same kernels",
    jobs=jobs,
    tables=tables,
    checks=checks,
)
