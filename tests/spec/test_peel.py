"""Properties without a last softmax or sigmoid: the restated one never claims more, and loses almost nothing."""

from __future__ import annotations

from decimal import Context, Decimal, localcontext

import numpy as np
import pytest

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.compile import read_vnnlib_text
from complete_verifier.spec.peel import LastLayer, restated
from complete_verifier.spec.property import Property

DECLARED = "".join(f"(declare-const {v} Real)\n" for v in ("X_0", "Y_0", "Y_1", "Y_2"))
BOX = "(assert (>= X_0 0)) (assert (<= X_0 1))\n"


def prop(formula: str) -> Property:
    return read_vnnlib_text(DECLARED + BOX + f"(assert {formula})")


def holds(spec: Property, y: np.ndarray) -> bool:
    return spec.violated_by([Decimal("0.5")], y.tolist())


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


@pytest.mark.parametrize("layer", ["Softmax", "Sigmoid"])
def test_order_is_kept(layer: LastLayer) -> None:
    spec = prop("(or (and (<= Y_0 Y_1) (<= Y_2 Y_1)) (and (>= Y_0 Y_2)))")
    without = restated(spec, layer)
    generator = np.random.default_rng(0)
    seen = set()
    for z in generator.normal(size=(300, 3)):
        y = softmax(z) if layer == "Softmax" else 1 / (1 + np.exp(-z))
        assert holds(without, z) == holds(spec, y)
        seen.add(holds(spec, y))
    assert seen == {True, False}


@pytest.mark.parametrize("limit", ["0.5", "0.1", "0.999", "0.000001"])
@pytest.mark.parametrize("comparison", ["<=", ">="])
def test_a_limit_becomes_its_logit_rounded_to_the_safe_side(limit: str, comparison: str) -> None:
    (row,) = restated(prop(f"({comparison} Y_1 {limit})"), "Sigmoid").regions[0].clauses[0].rows
    ((index, sign),) = row.terms
    exact = np.log(float(limit)) - np.log1p(-float(limit))
    assert index == 1 and sign == (1 if comparison == "<=" else -1)
    assert abs(float(row.rhs) * float(sign) - exact) < 1e-12
    # in exact arithmetic: the true logit lies within the row, so no counterexample is lost
    with localcontext(Context(prec=100)):
        true = (Decimal(limit) / (1 - Decimal(limit))).ln()
        assert sign * true <= row.rhs <= sign * true + Decimal("1e-39")


def test_limits_that_every_or_no_output_meets() -> None:
    spec = restated(prop("(and (<= Y_0 1) (>= Y_1 0) (<= Y_2 0.5))"), "Sigmoid")
    assert [row.terms[0][0] for row in spec.regions[0].clauses[0].rows] == [2]
    with pytest.raises(SpecError, match="no output of a sigmoid is <= 0"):
        restated(prop("(<= Y_0 0)"), "Sigmoid")
    with pytest.raises(SpecError, match=r"no output of a sigmoid is >= 1\.5"):
        restated(prop("(>= Y_0 1.5)"), "Sigmoid")


@pytest.mark.parametrize("formula", ["(<= Y_0 0.5)", "(<= (- Y_0 Y_1) 0.1)", "(<= (- Y_0 (* 2.0 Y_1)) 0)"])
def test_rows_that_a_softmax_would_change_are_refused(formula: str) -> None:
    with pytest.raises(SpecError, match="cannot be restated without the last layer"):
        restated(prop(formula), "Softmax")
