"""The algebra of verdicts, and what a record of an outcome refuses."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from auto_LiRPA.errors import ContractError
from complete_verifier.outcome import Outcome, Verdict

ALL = tuple(Verdict)


def test_the_values_are_the_words_of_the_results_file() -> None:
    assert {verdict.value for verdict in ALL} == {"unsat", "sat", "unknown", "timeout"}


def test_and_is_a_semilattice_with_holds_neutral_and_violated_absorbing() -> None:
    for a, b, c in product(ALL, repeat=3):
        assert a & b is b & a
        assert (a & b) & c is a & (b & c)
    for a in ALL:
        assert a & a is a
        assert a & Verdict.HOLDS is a
        assert a & Verdict.VIOLATED is Verdict.VIOLATED


def test_holds_needs_both_and_unknown_absorbs_timeout() -> None:
    assert [pair for pair in product(ALL, repeat=2) if pair[0] & pair[1] is Verdict.HOLDS] == [(Verdict.HOLDS,) * 2]
    assert Verdict.UNKNOWN & Verdict.TIMEOUT is Verdict.UNKNOWN


@pytest.mark.parametrize("verdict", ALL)
def test_a_counterexample_comes_with_violated_only(verdict: Verdict) -> None:
    point = np.zeros(3, dtype=np.float32)
    with pytest.raises(ContractError):
        Outcome(verdict=verdict, stopped_by="test", counterexample_N=None if verdict is Verdict.VIOLATED else point)
    good = Outcome(verdict=verdict, stopped_by="test", counterexample_N=point if verdict is Verdict.VIOLATED else None)
    assert good.verdict is verdict


@pytest.mark.parametrize("point", [np.array([np.nan]), np.array([np.inf]), np.zeros((1, 2))])
def test_a_counterexample_is_a_flat_finite_vector(point: np.ndarray) -> None:
    with pytest.raises(ContractError):
        Outcome(verdict=Verdict.VIOLATED, stopped_by="test", counterexample_N=point)
