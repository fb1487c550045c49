"""Faults planted one at a time: every one of them is noticed, by different bits, by memory, or by an end in time.

Each runs in a launch of its own on two ranks, beside a clean run of the same task; what a fault does to the matrix's
comparison is what is asserted here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch

from tests.parallel.launching import Launch, Outcome, launch, once
from tests.parallel.matrix import Layout, Task
from tests.parallel.mutations import CLEAN, FAULTS, Answer, Case

RANKS = 2
LIMIT_S = 25.0  # of a launch: a run that never ends counts as noticed only if it ends by itself or is ended here

ROWS = Layout("rows", "single", (2,), rows="shard")
FSDP = Layout("fsdp", "fsdp", (2,))
FSDP_ROWS = Layout("fsdp+rows", "fsdp", (2,), rows="shard")
DOMAINS = Layout("domains", "single", (2,), domains="shard")
TP = Layout("tp", "tp", (2,))
CROWN, IBP, KEEP, BAB = (Task("mlp", kind) for kind in ("crown", "ibp", "keep", "bab"))


@dataclass(frozen=True)
class Expected:
    """Where a fault is planted, and how it shows: different bits, more bytes, or an error."""

    layout: Layout
    task: Task
    ways: tuple[str, ...]


EXPECTED = {
    "collective dropped": Expected(ROWS, CROWN, ("bits", "error")),
    "collective doubled": Expected(ROWS, CROWN, ("bits", "error")),
    "results in another order": Expected(ROWS, CROWN, ("bits",)),
    "weights in another order": Expected(FSDP, CROWN, ("bits",)),
    "bias on all ranks": Expected(TP, CROWN, ("bits",)),
    "relu before the reduce": Expected(TP, IBP, ("bits",)),
    "reduce left out": Expected(TP, CROWN, ("bits",)),
    "stale alpha shard": Expected(ROWS, KEEP, ("bits",)),
    "domain skipped": Expected(DOMAINS, BAB, ("error",)),
    "job skipped": Expected(DOMAINS, BAB, ("error", "bits")),
    "adjoints in rank order": Expected(ROWS, KEEP, ("bits",)),
    "block kept": Expected(FSDP, CROWN, ("bits",)),
    "block kept, debug mode": Expected(FSDP, CROWN, ("bits",)),
    "shard is a view": Expected(FSDP, CROWN, ("bytes",)),
    "idle pass left out": Expected(FSDP_ROWS, CROWN, ("error", "bits")),
    "own clock": Expected(FSDP_ROWS, CROWN, ("error",)),
    "dealt from rank 0": Expected(ROWS, Task("cnn", "keep"), ("bits",)),
}
# Faults of the test itself look like errors too, and are not what it looks for.
OWN_FAULT = re.compile(r"^(AttributeError|TypeError|NameError|ImportError|LookupError|KeyError|AssertionError)", re.M)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Outcome]:
    """Every fault once, and every task that they are planted in without one; all forked from one process."""

    def make() -> dict[tuple[str, str, str], Outcome]:
        cases = [Case(name, one.layout, one.task) for name, one in EXPECTED.items()]
        clean = {(one.layout.name, one.task.name): Case(CLEAN, one.layout, one.task) for one in EXPECTED.values()}
        cases += clean.values()
        launches = [Launch(RANKS, "tests.parallel.mutations:run", case, timeout_s=LIMIT_S) for case in cases]
        keys = [(case.fault, case.layout.name, case.task.name) for case in cases]
        return dict(zip(keys, launch(launches, {"OMP_NUM_THREADS": "1"}), strict=True))

    return once(tmp_path_factory, "mutations", make)


def test_every_fault_is_tried() -> None:
    assert EXPECTED.keys() == FAULTS.keys() - {CLEAN}


@pytest.mark.parametrize("fault", EXPECTED)
def test_noticed(outcomes: dict[tuple[str, str, str], Outcome], fault: str) -> None:
    expected = EXPECTED[fault]
    where = (expected.layout.name, expected.task.name)
    clean: list[Answer] = outcomes[CLEAN, *where].checked()
    assert not ways_noticed(clean, clean, exact=True)
    outcome = outcomes[fault, *where]
    assert any("the fault has struck" in log for log in outcome.logs), "it was planted where nothing comes by"
    assert not any(OWN_FAULT.search(log) for log in outcome.logs), outcome.told()
    if not outcome.ok:
        assert not outcome.late, f"a run with this fault never ends\n{outcome.told()}"
        assert "error" in expected.ways, outcome.told()
        return
    ways = ways_noticed(outcome.results, clean, exact=expected.layout.mode != "tp")
    assert ways & set(expected.ways), f"noticed by nothing of {expected.ways}"


def ways_noticed(answers: list[Answer], clean: list[Answer], exact: bool) -> set[str]:
    """How results differ from a clean run's, on any rank."""
    ways = set()
    for answer, right in zip(answers, clean, strict=True):
        found, wanted = answer.found, right.found
        if found.numbers != wanted.numbers or found.tensors.keys() != wanted.tensors.keys():
            ways.add("bits")
        for name, tensor in found.tensors.items():
            other = wanted.tensors[name]
            if exact and not torch.equal(tensor, other):
                ways.add("bits")
            if not exact and not bool((((tensor - other).abs() / (1 + other.abs())) <= 1e-5).all()):
                ways.add("bits")
        if found.facts.weight_bytes > 1.2 * wanted.facts.weight_bytes:
            ways.add("bytes")
    return ways
