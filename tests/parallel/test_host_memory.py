"""Mode offload on several ranks of one host: one copy of the weights, and nothing left of it. Ranks are processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.parallel.host_workers import CHECKS
from tests.parallel.launching import Launch, Outcome, launch, once
from tests.parallel.store_checks import numbers
from tests.parallel.test_stores import network

SIZES = (1, 2, 3)
KILLED = (0, 2)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """What every rank of every number of ranks found; then a rank is killed."""
    return once(tmp_path_factory, "host", lambda: _results(tmp_path_factory.mktemp("nets")))


def _results(folder: Path) -> list[Outcome]:
    layers = [(numbers((96, 96), i), numbers((96,), i)) for i in range(3)]
    layers[1][0][40, 5] = torch.nan
    case = {"nan": network(folder / "nan.onnx", layers, turned=False)}
    checks = [Launch(size, "tests.parallel.host_workers:run", case) for size in SIZES]
    deaths = [Launch(3, "tests.parallel.host_workers:killed", rank, grace_s=10.0) for rank in KILLED]
    return launch([*checks, *deaths])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_ranks(results: list[Outcome], size: int, check: str) -> None:
    """Every rank came through the check."""
    faults = [found[check] for found in results[SIZES.index(size)].checked()]
    assert not any(faults), "\n".join(f"rank {rank}: {fault}" for rank, fault in enumerate(faults) if fault)


@pytest.mark.parametrize("number", range(len(KILLED)))
def test_a_rank_that_is_killed(results: list[Outcome], number: int) -> None:
    outcome = results[len(SIZES) + number]
    assert outcome.codes[KILLED[number]] == -9
    assert [code for rank, code in enumerate(outcome.codes) if rank != KILLED[number]] == [1, 1], outcome.told()
    assert sum("broke off" in log for log in outcome.logs) == 2, outcome.told()
    assert not [name for name in os.listdir("/dev/shm") if "weights" in name]
