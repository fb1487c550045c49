"""A case of a property about inputs only: each input of it is a counterexample, whatever stage comes first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.runs import mlp_model, property_text, run, write
from tests.nets import dense_layers


@pytest.mark.parametrize("verifier", ["auto", "bab", "bab-refine", "mip"])
def test_a_case_without_outputs_is_violated(verifier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Branch and bound took the sum of no rows, which is 0, for a proof."""
    text = property_text(-np.ones(2), np.ones(2), 2, [])
    text = text.replace("(assert (or ))", "(assert (or (and (>= Y_0 100.0)) (and (<= X_0 0.5))))")
    files = write(tmp_path, mlp_model(dense_layers([2, 8, 8, 2], 3)), text)
    found = run(capsys, tmp_path, files, "--pgd_order", "skip", "--complete_verifier", verifier, "--timeout", "20")
    assert found.word == "sat", found.out
