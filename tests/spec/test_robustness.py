"""Data-set margins as properties, against the plain meaning of each robustness type."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.robustness import RobustnessType, robustness_property

LOWER = np.array([[0.1, 0.2]], dtype=np.float32)
UPPER = LOWER + np.float32(0.5)
INSIDE = [0.3, 0.4]


@pytest.mark.parametrize("threshold", [0.0, 0.5, -0.25])
def test_each_type_asks_its_own_margins(threshold: float) -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        y = (generator.integers(-4, 5, size=4) / 4).tolist()
        label, target = 2, 0
        margins: dict[RobustnessType, list[float]] = {
            "verified-acc": [y[label] - y[j] for j in range(4) if j != label],
            "runnerup": [y[label] - y[target]],
            "specify-target": [y[label] - y[target]],
            "all-positive": y,
        }
        for kind, values in margins.items():
            spec = robustness_property(LOWER, UPPER, label, kind, n_outputs=4, target=target, threshold=threshold)
            assert spec.violated_by(INSIDE, y) == any(value <= threshold for value in values), (kind, y)
            assert not spec.violated_by([0.0, 0.4], y)
            assert len(spec.regions[0].clauses) == len(values)


def test_the_box_is_exactly_the_floats() -> None:
    box = robustness_property(LOWER, UPPER, 0, "verified-acc", n_outputs=2).regions[0].box
    assert box.lo_exact == tuple(Decimal(float(v)) for v in LOWER.reshape(-1))
    assert all(np.array_equal(a, b.reshape(-1)) for a, b in zip(box.outward(np.float32), (LOWER, UPPER), strict=True))
    assert all(np.array_equal(a, b.reshape(-1)) for a, b in zip(box.inward(np.float32), (LOWER, UPPER), strict=True))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "clean-acc": (dict(kind="clean-acc"), "choose verified-acc"),
    "unknown type": (dict(kind="verified_acc"), "unknown robustness_type"),
    "label too large": (dict(label=3), "label 3 does not fit a network of 3 outputs"),
    "negative label": (dict(label=-1), "label -1"),
    "no target": (dict(kind="runnerup"), "needs a target"),
    "target is label": (dict(kind="specify-target", target=1), "needs a target"),
    "one output": (dict(n_outputs=1, label=0), "choose all-positive"),
    "crossed": (dict(lower=UPPER, upper=LOWER), "input X_0 is empty"),
    "nan": (dict(lower=np.full((1, 2), np.nan)), "X_0: its lower bound is NaN"),
    "infinite": (dict(upper=np.full((1, 2), np.inf)), "X_0: its upper bound is Infinity"),
    "sizes": (dict(lower=np.zeros(3)), "3 lower but 2 upper"),
    "integers": (dict(lower=np.zeros(2, dtype=np.int64)), "give float32 or float64"),
    "threshold": (dict(threshold=float("inf")), "threshold is inf"),
}


@pytest.mark.parametrize("name", BAD)
def test_impossible_questions_end_in_one_line(name: str) -> None:
    changes, words = BAD[name]
    settings: dict[str, Any] = dict(lower=LOWER, upper=UPPER, label=1, kind="verified-acc", n_outputs=3) | changes
    with pytest.raises(SpecError) as caught:
        robustness_property(**settings)
    assert words in str(caught.value) and "\n" not in str(caught.value)
