"""Names of an earlier code base over ours: the same bounds, memory really shared, batches cut and put together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from auto_LiRPA import BoundedModule, BoundedTensor, DistributedContext, ParallelSettings, PerturbationLpNorm
from auto_LiRPA.errors import ConfigError
from auto_LiRPA.fsdp_utils import fsdp_shard_bounded_module
from auto_LiRPA.operators.parallel_maps import ColumnLinear, Exit
from auto_LiRPA.operators.tensor_parallel import BoundLinearTP_Col, BoundLinearTP_Row, DifferentiableAllReduce
from auto_LiRPA.parallel.existing import existing_context
from auto_LiRPA.tp_utils import tp_shard_bounded_module
from complete_verifier.bab_parallel import gather_result_dict, scatter_domain_dict
from tests.parallel.launching import Launch, launch, once
from tests.parallel.plan_workers import held
from tests.support import ROOT, shared_dir


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """By number of ranks, what each found: one launch."""

    def make() -> dict[int, list[Any]]:
        found = launch([Launch(size, "tests.parallel.plan_workers:aliases") for size in (1, 2, 3)])
        return {size: one.checked() for size, one in zip((1, 2, 3), found, strict=True)}

    return once(tmp_path_factory, "aliases", make)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sharding_in_place_keeps_every_bit(ranks: Any, size: int) -> None:
    for found in ranks[size]:
        for plain, sharded in zip(ranks[1][0]["plain"], found["fsdp"], strict=True):
            assert torch.equal(plain, sharded)
        assert size == 1 or not any(found["local"][1:4:2]), "large weights have left the rank"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_splitting_in_place_is_exact_and_names_what_is_split(ranks: Any, size: int) -> None:
    for found in ranks[size]:
        for plain, split in zip(found["plain"], found["tp"], strict=True):
            assert torch.allclose(plain, split, rtol=1e-5, atol=1e-5)
        whole = [(600, 160), (500, 600), (150, 500)]
        split = [(600 // size, 160), (500, 600 // size), (150, 500)]  # the pair with most elements
        assert found["shapes"] == split
        assert found["names"] == ([] if size == 1 else [f"n{1 + 2 * i}" for i in range(3) if split[i] != whole[i]])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_are_cut_and_put_together(ranks: Any, size: int) -> None:
    cuts = [found["mine"] for found in ranks[size]]
    assert sorted(len(one["history"]) for one in cuts) == sorted(len(range(r, 7, size)) for r in range(size))
    for found in ranks[size]:
        whole, gathered = found["whole"], found["gathered"]
        assert torch.equal(gathered["lower"], whole["lower"])
        assert torch.equal(gathered["alphas"]["relu"]["out"], whole["alphas"]["relu"]["out"])
        assert (gathered["history"], gathered["betas"], gathered["name"]) == (list(range(7)), tuple("abcdefg"), 3)
        mine = found["mine"]
        assert mine["alphas"]["relu"]["out"].shape == (2, 3, len(mine["history"]))
        assert len(mine["betas"]) == len(mine["lower"]) == len(mine["history"])


def test_entries_that_disagree_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"entries have \[2, 3\] sub-problems"):
        scatter_domain_dict({"a": torch.zeros(2), "b": [1, 2, 3]}, 0, 2)
    with pytest.raises(ConfigError, match="entries have no sub-problems"):
        scatter_domain_dict({"a": 1}, 0, 2)


def test_ranks_that_have_not_met_are_told_so() -> None:
    bounded = BoundedModule(held(), torch.zeros(1, 160))
    for call in (fsdp_shard_bounded_module, tp_shard_bounded_module):
        with pytest.raises(ConfigError, match="world_size = 2: these ranks have not met; call torch.distributed"):
            call(bounded, 2, 0)
    with pytest.raises(ConfigError, match="have not met"):
        gather_result_dict({"a": torch.zeros(1)}, 2)
    with pytest.raises(ConfigError, match="parallel.mesh: not for a process group of the caller's"):
        existing_context(ParallelSettings(mode="fsdp", mesh={"weights": 2}), torch.device("cpu"), 2)


def test_distribute_places_weights_anew() -> None:
    x = torch.zeros(1, 160)
    bounded = BoundedModule(held(), x)
    region = BoundedTensor(x, PerturbationLpNorm(norm=float("inf"), eps=0.1))
    before = bounded.compute_bounds(x=(region,), method="IBP")[0]
    for place in (ParallelSettings(mode="offload"), DistributedContext.single()):
        bounded.distribute(place)
        assert torch.equal(bounded.compute_bounds(x=(region,), method="IBP")[0], before)


def test_names_of_operators() -> None:
    assert BoundLinearTP_Col is ColumnLinear and BoundLinearTP_Row is Exit
    assert issubclass(DifferentiableAllReduce, torch.autograd.Function)


@pytest.mark.parametrize("size", [1, 2])
def test_the_wrapper_ends_with_each_ranks_peak(size: int, tmp_path: Path) -> None:
    folder = shared_dir("benchmarks", "mnist_fc")
    script = ROOT / "experiments" / "fsdp_crown" / "run_abcrown_fsdp.py"
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={size}"]
    start = [sys.executable, *(torchrun if size > 1 else [])]
    words = [
        "--onnx_path", str(folder / "onnx" / "mnist-net_256x2.onnx"), "--vnnlib_path",
        str(folder / "vnnlib" / "prop_0_0.03.vnnlib"), "--device", "cpu", "--pgd_order", "skip", "--timeout", "90",
    ]  # fmt: skip
    done = subprocess.run(
        [*start, str(script), *words], capture_output=True, text=True, timeout=150, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    last = [line for line in done.stdout.splitlines() if "Peak GPU memory" in line]
    assert sorted(last) == (
        ["Peak GPU memory: 0.0 MB"] if size == 1 else [f"[Rank {r}] Peak GPU memory: 0.0 MB" for r in range(size)]
    )
    assert done.stdout.count("Result: unsat") == 1
    assert ("mode: fsdp" in done.stdout) == (size > 1)
