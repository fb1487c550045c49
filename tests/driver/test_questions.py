"""From files to tensors: boxes and right-hand sides are rounded to the safe side, clauses keep rows and regions."""

from __future__ import annotations

import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.errors import SpecError, WorkerFailed
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Box
from complete_verifier.config import load_mapping
from complete_verifier.driver.questions import Question, clauses_of, read_question
from complete_verifier.driver.same_input import check_same_question
from complete_verifier.problem import Clock
from complete_verifier.spec.compile import read_vnnlib_text
from tests.end_to_end.runs import mlp_model
from tests.nets import dense_layers

DECLARED = "".join(f"(declare-const {v} Real)\n" for v in ("X_0", "X_1", "Y_0", "Y_1"))
# 0.1 lies below its float32, 0.7 above: rounding to nearest would be wrong on one side of each
TEXT = (
    DECLARED
    + """
(assert (>= X_0 0.1)) (assert (<= X_0 0.7)) (assert (>= X_1 -0.7)) (assert (<= X_1 -0.1))
(assert (or (and (<= Y_0 0.7) (< Y_1 0.1)) (and (>= Y_0 0.1)) (and (<= X_0 0.3) (<= (- Y_0 Y_1) 16777217.0))))
"""
)


def exact(value: float) -> Decimal:
    return Decimal(value)


def question(folder: Path, text: str, double: bool = False) -> Question:
    onnx.save(mlp_model(dense_layers([2, 3, 2], 0)), folder / "n.onnx")
    (folder / "p.vnnlib").write_text(text)
    config = load_mapping({"general": {"double_fp": double}}).config
    clock = Clock(time.monotonic(), 60.0)
    context = DistributedContext.single()
    return read_question(folder / "n.onnx", folder / "p.vnnlib", config, context, BoundSettings(), clock)


@pytest.mark.parametrize("double", [False, True])
def test_boxes_contain_the_exact_ones(tmp_path: Path, double: bool) -> None:
    found = question(tmp_path, TEXT, double)
    region = found.problem.region
    assert isinstance(region, Box) and region.lower.shape == (2, 2)
    assert region.lower.dtype == (torch.float64 if double else torch.float32)
    for number, spec in enumerate(found.prop.regions):
        for i in range(2):
            low, high = exact(region.lower[number, i].item()), exact(region.upper[number, i].item())
            assert low <= spec.box.lo_exact[i] and spec.box.hi_exact[i] <= high
            assert high - spec.box.hi_exact[i] < Decimal("1e-7") and spec.box.lo_exact[i] - low < Decimal("1e-7")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clauses_keep_their_rows_and_round_up(dtype: torch.dtype) -> None:
    prop = read_vnnlib_text(TEXT)
    clauses = clauses_of(prop, dtype, torch.device("cpu"))
    assert clauses.c.shape == (3, 2, 2) and clauses.c.dtype == clauses.rhs.dtype == dtype
    pairs = [(number, clause) for number, region in enumerate(prop.regions) for clause in region.clauses]
    assert clauses.region.tolist() == [number for number, _ in pairs]
    for k, (_, clause) in enumerate(pairs):
        count = len(clause.rows)
        np.testing.assert_array_equal(clauses.c[k, :count].double().numpy(), clause.mat)
        assert not clauses.c[k, count:].any() and (clauses.rhs[k, count:] == torch.inf).all()
        assert clauses.attainable_rhs[k].tolist() == [*clause.strict.tolist(), *[False] * (2 - count)]
        for r, row in enumerate(clause.rows):
            assert exact(clauses.rhs[k, r].item()) >= row.rhs
            assert exact(clauses.rhs[k, r].item()) - row.rhs <= abs(row.rhs) * Decimal("2e-7")


def test_a_clause_without_rows_can_not_be_proved() -> None:
    """Every output in that box counts: there is nothing that a bound could rule out."""
    text = DECLARED + "(assert (>= X_0 0)) (assert (<= X_0 1)) (assert (>= X_1 0)) (assert (<= X_1 1))\n"
    prop = read_vnnlib_text(text + "(assert (or (<= X_0 0.5) (<= Y_0 1)))")
    clauses = clauses_of(prop, torch.float32, torch.device("cpu"))
    empty = (clauses.rhs == torch.inf).all(1)
    assert empty.any()
    assert not clauses.proven(torch.full_like(clauses.rhs, 1e30))[empty].any()


def test_a_box_that_float32_cannot_hold_names_its_file(tmp_path: Path) -> None:
    text = TEXT.replace("(<= X_0 0.7)", "(<= X_0 1e39)")
    with pytest.raises(SpecError, match=r"p\.vnnlib: input X_0 .* double_fp"):
        question(tmp_path, text)
    assert question(tmp_path, text, double=True).problem.region.center().isfinite().all()


class _WithMore(torch.nn.Linear):
    """Its state holds more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}


def test_ranks_compare_the_numbers_of_a_module_whatever_else_its_state_holds() -> None:
    prop = read_vnnlib_text(TEXT)
    seen: list[dict[str, str]] = []

    class World:
        observer = None

        def objects(self, mine: dict[str, str]) -> list[dict[str, str]]:
            seen.append(mine)
            return [seen[0], mine]

    context = replace(DistributedContext.single(), world_size=2, world=World())  # type: ignore[arg-type]
    net = _WithMore(2, 2)
    check_same_question(context, prop, net)
    check_same_question(context, prop, net)
    with pytest.raises(WorkerFailed, match="the network differs"):
        check_same_question(context, prop, _WithMore(2, 2))
