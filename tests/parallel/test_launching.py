"""The launcher of the tests: results of every rank, time limits, logs, and no process left behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.parallel.launching import Launch, Outcome, descendants, launch
from tests.parallel.zygote import Job, zygote_of
from tests.support import ROOT

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
    return dict(zip(names, launch(launches, {"LAUNCH_MARK": "1"}), strict=True))


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


def test_nothing_is_left_and_jobs_end_in_time(outcomes: dict[str, Outcome], tmp_path: Path) -> None:
    """What imports for all of them stays, without children; a job that hangs dies with what it started."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LAUNCH_MARK": "2"}
    zygote = zygote_of(env, ROOT)
    began = time.monotonic()
    note = tmp_path / "pids"
    code, _ = zygote.run(Job(WORKERS, str(note)), 2.0)
    assert code is None and not zygote.alive
    assert time.monotonic() - began < 60
    pids = [int(pid) for pid in note.read_text().split()]
    assert len(pids) == 2 and not any(_runs(pid) for pid in pids)
    another = zygote_of(env, ROOT)
    assert another.alive
    code, output = another.run(Job("tests.parallel.no_such_module", ""), 30.0)
    assert code == 1 and "ModuleNotFoundError" in output
    assert not descendants(another.pid)
    another.close()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
