"""The launcher of the tests: results of every rank, time limits, logs, and no process left behind."""

from __future__ import annotations

import os

import pytest

from tests.parallel.launching import Launch, Outcome, launch

WORKERS = "tests.parallel.workers"


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """All launches at once: the imports cost more than the runs."""
    names = ("one", "three", "hang", "fail")
    launches = [
        Launch(1, f"{WORKERS}:identity", "a"),
        Launch(3, f"{WORKERS}:identity", "b"),
        Launch(2, f"{WORKERS}:hangs", 1, timeout_s=4),
        Launch(2, f"{WORKERS}:fails", 0, grace_s=0.5),
    ]
    return dict(zip(names, launch(launches, {"LAUNCH_MARK": str(os.getpid())}), strict=True))


@pytest.mark.parametrize(("name", "size", "case"), [("one", 1, "a"), ("three", 3, "b")])
def test_every_rank_answers(outcomes: dict[str, Outcome], name: str, size: int, case: str) -> None:
    found = outcomes[name].checked()
    assert [one["ranks"] for one in found] == [list(range(size))] * size
    assert [one["local"] for one in found] == list(range(size))
    assert all(one["case"] == case for one in found)


def test_a_rank_that_hangs_is_ended_and_says_where(outcomes: dict[str, Outcome]) -> None:
    found = outcomes["hang"]
    assert found.late and not found.ok and found.codes == [None, None] and found.seconds < 8
    assert "in hangs" in found.logs[1] and "in barrier" in found.logs[0]
    with pytest.raises(AssertionError, match="time limit reached"):
        found.checked()


def test_a_rank_that_fails_ends_the_others(outcomes: dict[str, Outcome]) -> None:
    found = outcomes["fail"]
    assert found.codes[0] == 1 and found.codes[1] != 0 and found.seconds < 10
    with pytest.raises(AssertionError, match="ValueError: planted"):
        found.checked()


def test_nothing_is_left(outcomes: dict[str, Outcome]) -> None:
    mark = f"LAUNCH_MARK={os.getpid()}".encode()
    alive = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    alive.append(pid)
        except OSError:
            continue
    assert not alive
