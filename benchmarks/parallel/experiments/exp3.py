"""Experiment 3: ONNX networks under tensor parallelism without any change to them."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.parallel.experiments import bounds
from benchmarks.parallel.experiments.kinds import (
    Check,
    Experiment,
    Figures,
    Job,
    Options,
    Table,
    at_least,
    at_most,
    equal,
)

LIMIT = 1e-5
SHARED = 0.9  # of the weight bytes of an MLP


def jobs(options: Options) -> Iterator[Job]:
    """One GPU, and tensor parallelism."""
    samples = ("--samples", "256" if options.reduced else "10000")
    return bounds.jobs(3, options, ("single",), ("tp",), samples)


def shared(one: Figures, single: Figures) -> float:
    """Share of the weight bytes of which each rank has its part only; the ranks' largest copy counts.

    A rank has the shared bytes S / P and the others R whole, with S + R = W: S = (W - what it has) P / (P - 1).
    """
    whole, ranks = single["weight_mib"], one["world"]
    return float((whole - one["weight_mib"]) / whole * ranks / (ranks - 1))


def tables(figures: list[Figures]) -> Iterator[Table]:
    """Pairs, shares and bounds."""
    lines = [
        (
            one["net"], one["world"], "; ".join(one["pairs"]), single["weight_mib"], one["weight_mib"],
            f"{100 * shared(one, single):.1f} %", bounds.difference(one, single, "lower"),
            bounds.difference(one, single, "upper"), bounds.ranks_agree(one), bounds.outside(one, single),
        )
        for one, single in bounds.against_single(figures)
    ]  # fmt: skip
    header = ("net", "P", "pairs found (first > last layer)", "weights MiB", "of a rank", "shared out", "lower",
              "upper", "ranks equal", "outputs outside")  # fmt: skip
    note = (
        "Weights: bytes of the storages that a rank keeps. Layers that are in no pair stay whole on every rank."
        " lower, upper: largest difference from one GPU."
    )
    yield Table("CROWN, eps 0.02, the files of VNN-COMP as they are", header, lines, note)


def checks(figures: list[Figures]) -> Iterator[Check]:
    """Nearly all weights are shared out, and the bounds are those of one GPU."""
    for one, single in bounds.against_single(figures):
        name = bounds.name_of(one)
        yield at_least(f"{name}: share of the weight bytes that is shared out", SHARED, shared(one, single))
        yield at_most(f"{name}: difference relative to 1 + abs(bound)", LIMIT, bounds.relative(one, single))
        yield equal(f"{name}: all ranks have equal bits", True, bounds.ranks_agree(one))
        yield equal(f"{name}: sampled outputs outside", 0, bounds.outside(one, single))


EXPERIMENT = Experiment(
    number=3,
    title="automatic sharding of ONNX networks",
    paper="the three MNIST-FC networks are sharded without manual change, with the losses of experiment 2",
    later="nothing",
    jobs=jobs,
    tables=tables,
    checks=checks,
)
