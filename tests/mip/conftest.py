"""Solver processes that all tests of a module share: starting one takes a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from complete_verifier.mip.pool import SolverPool


@pytest.fixture(scope="module")
def pool() -> Iterator[SolverPool]:
    with SolverPool(2, lambda: 600.0) as solvers:
        yield solvers
