"""The `parallel:` section as a plain value (DESIGN 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from auto_LiRPA.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelSettings:
    """Where weights, rows and domains live. ``auto`` never depends on the number of ranks or on free memory."""

    mode: Literal["single", "fsdp", "tp", "offload", "auto"] = "single"
    rows: Literal["shard", "replicate", "auto"] = "auto"
    domains: Literal["shard", "replicate", "auto"] = "auto"
    mesh: dict[str, int] | None = None
    backend: Literal["nccl", "gloo", "auto"] = "auto"
    tile_rows: int | Literal["auto"] = "auto"
    block_mib: float = 16.0
    prefetch: bool = True
    tp_intermediate: Literal["exact", "ibp"] = "exact"
    timeout_s: float = 300.0
    threads: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.tile_rows != "auto" and self.tile_rows < 1:
            raise ConfigError(f"parallel.tile_rows = {self.tile_rows}: expected auto or a whole number of 1 or more")
        if not self.block_mib > 0:
            raise ConfigError(f"parallel.block_mib = {self.block_mib}: expected a positive size in MiB")
        if self.threads != "auto" and self.threads < 1:
            raise ConfigError(f"parallel.threads = {self.threads}: expected auto or a whole number of 1 or more")
