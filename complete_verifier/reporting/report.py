"""The record of one instance: what was concluded, why, at what cost. Everything that is written comes from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from complete_verifier.outcome import Verdict


@dataclass(frozen=True, slots=True)
class Collective:
    """Use of one kind of collective by one rank."""

    calls: int
    mib: float
    seconds: float


@dataclass(frozen=True, slots=True)
class RankUse:
    """Memory and work of one rank. Sizes are MiB; what is not known on a device is None."""

    rank: int
    device: str
    resident_mib: float | None
    weight_mib: float
    peak_allocated_mib: float | None
    peak_reserved_mib: float | None
    process_mib: float | None
    tiles: int
    live_blocks_max: int
    collectives: dict[str, Collective]


@dataclass(frozen=True, slots=True)
class Placement:
    """The parallel section as it acted."""

    world_size: int
    mode: str
    rows: str
    domains: str
    tile_rows: int | str
    block_mib: float


@dataclass(frozen=True, slots=True)
class SearchUse:
    """What branch and bound did."""

    domains_visited: int
    rounds: int
    domains_per_s: float
    worst_bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceReport:
    """One instance. ``status`` is the verdict in upstream's words (safe-incomplete, unsafe-pgd, ...)."""

    index: int
    network: str
    specification: str
    verdict: Verdict
    status: str
    stopped_by: str
    wall_s: float
    timeout_s: float
    counterexample: str | None = None  # the text that goes into files
    phases: dict[str, float] = field(default_factory=dict)
    row_bounds: tuple[float, ...] = ()  # per row of the specification, before branch and bound
    search: SearchUse | None = None
    placement: Placement | None = None
    ranks: tuple[RankUse, ...] = ()
    error: str | None = None  # the line of an instance of a list that could not be run

    @property
    def timed_out(self) -> bool:
        """Whether the clock ended it."""
        return self.verdict is Verdict.TIMEOUT
