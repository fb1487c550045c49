"""The transformers of VNN-COMP on ranks: experiment 7's bounds have the bits of one process (minutes on a CPU)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.parallel import starting
from benchmarks.parallel.starting import Job
from tests.support import ROOT, shared_dir


def _figures(net: str, mode: str, world: int, data: Path, folder: Path) -> dict[str, Any]:
    """CROWN's figure of the configuration's own instance."""
    config = str(ROOT / "exp_configs" / "parallel" / f"exp7_vit_{net}.yaml")
    words = ("--config", config, "--mode", mode, "--data", str(data), "--parts", "bounds", "--only", "--samples", "200")
    out = folder / f"{net}-{mode}-{world}.jsonl"
    job = Job("vit_time.py", world, (*words, "--repeats", "1", "--warmup", "0"), 1500.0)
    assert not starting.run_jobs([job], out, 1600.0)
    found: dict[str, Any] = next(one for one in starting.read(out) if one.get("method") == "CROWN")
    return found


@pytest.mark.soak
@pytest.mark.parametrize(("net", "worlds"), [("pgd_2_3_16", (2, 3)), ("ibp_3_3_8", (2,))])
def test_bounds_of_the_competition_s_networks(net: str, worlds: tuple[int, ...], tmp_path: Path) -> None:
    data = shared_dir("benchmarks")
    single = _figures(net, "single", 1, data, tmp_path)
    assert single["violated"] == 0
    for world in worlds:
        for mode in ("fsdp", "fsdp+rows"):
            found = _figures(net, mode, world, data, tmp_path)
            assert found["digests"] == single["digests"], f"{mode} P={world}"
            assert found["weight_mib"] < single["weight_mib"] / world + 0.05
