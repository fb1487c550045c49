"""Helpers shared by the tests: where the shared data lies, and small networks."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_dir(*parts: str) -> Path:
    """Path below the shared data folder beside the checkout; skips the test where it is missing."""
    path = ROOT.parent.joinpath("shared", *parts)
    if not path.exists():
        pytest.skip(f"shared data not found: {'/'.join(('../shared', *parts))}")
    return path
