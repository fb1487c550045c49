"""One rank's clock runs out where ranks bound the same things together: all stop at the same place."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parallel.clock_workers import ALPHA
from tests.parallel.launching import Launch, launch, once


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """By rank."""
    many = [Launch(2, "tests.parallel.clock_workers:apart", timeout_s=60)]
    return once(tmp_path_factory, "clocks", lambda: launch(many))[0].checked()


@pytest.mark.parametrize("mode", ["fsdp", "tp"])
@pytest.mark.parametrize("alpha", ALPHA)
def test_bounds_are_the_same_on_both_ranks(found: list[dict[str, Any]], mode: str, alpha: str) -> None:
    """Ranks that share weights and no rows: a rank with other bounds than its peers would go on by itself."""
    ours, theirs = (rank[f"{mode} {alpha}"] for rank in found)
    assert len(ours) == len(theirs) > 2
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("mode", ["fsdp", "tp"])
def test_splits_of_curves_end_together(found: list[dict[str, Any]], mode: str) -> None:
    """Ranks that search the same queue have the same tree, and leave it in the same round."""
    ours, theirs = (rank[f"{mode} nonlinear"] for rank in found)
    assert ours == theirs
    assert ours[:2] == (False, "time limit")
