"""Section `parallel`: what is spread over ranks, and the sizes of tiles and blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from auto_LiRPA.parallel.settings import ParallelSettings
from complete_verifier.config.kinds import (
    CHOICE,
    Bool,
    CountOrAuto,
    FinitePositive,
    Kind,
    Positive,
)
from complete_verifier.config.readers import WrongValueError, read_int
from complete_verifier.config.schema_base import Section, option

MESH_AXES = ("weights", "rows", "domains")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Ranks along each axis of the device mesh; their product is the world size."""

    weights: int = 1
    rows: int = 1
    domains: int = 1


def _read_mesh(raw: object) -> Mesh:
    """A mapping of axes to sizes, or the same as text: "weights=2,domains=4"."""
    if isinstance(raw, Mesh):
        return raw
    if isinstance(raw, str):
        pairs = [part.partition("=") for part in raw.split(",")]
        raw = {axis.strip(): size.strip() for axis, _, size in pairs}
    if not isinstance(raw, Mapping) or not raw or not set(raw) <= set(MESH_AXES):
        raise WrongValueError
    sizes = {str(axis): read_int(size) for axis, size in raw.items()}
    if min(sizes.values()) < 1:
        raise WrongValueError
    return Mesh(**sizes)


_MESH = Kind("a mapping of weights, rows, domains to sizes >= 1", _read_mesh, nullable=True)
_SPREAD = Literal["shard", "replicate", "auto"]


class Parallel(Section):
    """Placement of weights, rows and sub-problems; the same fields as the library's own settings."""

    mode: Annotated[Literal["single", "fsdp", "tp", "offload", "auto"], CHOICE] = option(
        "single",
        "--parallel_mode",
        "Where weights live: whole, sharded, split within layers or in host memory.",
    )
    rows: Annotated[_SPREAD, CHOICE] = option(
        "auto", "--parallel_rows", "Share the rows of backward passes out over ranks."
    )
    domains: Annotated[_SPREAD, CHOICE] = option(
        "auto", "--parallel_domains", "Share the sub-problems of branch and bound out over ranks."
    )
    mesh: Annotated[Mesh | None, _MESH] = option(
        None, "--parallel_mesh", "Ranks along each axis; null derives them from the mode and the number of ranks."
    )
    backend: Annotated[Literal["nccl", "gloo", "auto"], CHOICE] = option(
        "auto", "--parallel_backend", "Library for collectives; auto takes nccl on GPUs and gloo on CPUs."
    )
    tile_rows: CountOrAuto = option(
        "auto", "--parallel_tile_rows", "Rows bounded together; auto depends on model, precision and settings only."
    )
    block_mib: FinitePositive = option(16.0, "--parallel_block_mib", "Size of one block of weights in MiB.")
    prefetch: Bool = option(
        True, "--no_parallel_prefetch", "Fetch the next block of weights while the current one is multiplied."
    )
    tp_intermediate: Annotated[Literal["exact", "ibp"], CHOICE] = option(
        "exact", "--parallel_tp_intermediate", "Bounds inside zones of mode tp: by tiles, or by intervals as published."
    )
    timeout_s: Positive = option(300.0, "--parallel_timeout_s", "Seconds that a collective waits at most.")
    threads: CountOrAuto = option(
        "auto", "--parallel_threads", "CPU threads of each process; auto shares the cores out over local ranks."
    )

    def settings(self) -> ParallelSettings:
        """The same settings as the library's plain value."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return ParallelSettings(**values | {"mesh": None if self.mesh is None else asdict(self.mesh)})
