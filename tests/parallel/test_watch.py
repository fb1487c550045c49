"""Who is missing: a watch's judgement from beats alone, without processes, devices or waiting."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from auto_LiRPA.parallel import watch as module
from auto_LiRPA.parallel.watch import Beat, Missing, Watch, step_of

TIMEOUT_S = 5.0


class Notes:
    """A board in this process."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def put(self, key: str, text: str) -> None:
        self.texts[key] = text

    def get(self, key: str) -> str | None:
        return self.texts.get(key)


class Nobody:
    def beat(self) -> float:
        return 1.0

    def signalled(self, numbers: bytes) -> None: ...

    def missing(self, found: Missing) -> None: ...

    def board_lost(self) -> None: ...


class World:
    """Rank 0's watch over others whose beats the test writes; its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int = 3) -> None:
        self.now, self.left_s, self.notes = 100.0, 1000.0, Notes()
        monkeypatch.setattr("auto_LiRPA.parallel.watch.time.monotonic", lambda: self.now)
        monkeypatch.setattr(module, "_alive", lambda pid: pid not in self.dead)
        self.dead: set[int] = set()
        self.watch = Watch(0, size, self.notes, Nobody(), TIMEOUT_S, lambda: self.left_s)  # type: ignore[arg-type]
        self.beats = {
            rank: Beat(1, 1000 + rank, "here", module._machine(), "round 3", "", "", False, {}) for rank in range(size)
        }

    def says(self, rank: int, **changes: object) -> None:
        """A new beat of a rank."""
        self.beats[rank] = replace(self.beats[rank], **changes)  # type: ignore[arg-type]

    def look(self, seconds: float, silent: tuple[int, ...] = ()) -> Missing | None:
        """What rank 0 sees in the end, if it looks every second and all but ``silent`` ranks go on beating."""
        found = None
        for _ in range(max(1, round(seconds))):
            for rank, beat in self.beats.items():
                if rank not in silent:
                    self.beats[rank] = replace(beat, number=beat.number + 1)
                    self.notes.put(f"beat/{rank}", json.dumps(asdict(self.beats[rank])))
            found = self.watch.look()
            if found is not None:
                return found
            self.now += 1.0
        return found


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def all_of(*counts: int) -> dict[str, int]:
    """Collectives of everybody: what each rank has entered is written by its beat."""
    return {"0,1,2": counts[0]} if counts else {}


def enter(world: World, times: int, members: tuple[int, ...] = (0, 1, 2)) -> None:
    """Rank 0 enters collectives that come back at once, as those of a GPU do."""
    for _ in range(times):
        world.watch.entering("gather", members)
        world.watch.left()


def test_a_rank_that_does_not_come_is_named_with_its_step(world: World) -> None:
    enter(world, 7)
    world.says(1, counts=all_of(7))
    world.says(2, counts=all_of(6), step="bounding /12", place="bounds/x.py:3")
    assert world.look(TIMEOUT_S) is None
    found = world.look(2)
    assert found is not None and found.rank == 2
    assert found.line(3).startswith("rank 2 of 3")
    assert found.line(3).endswith("its last step: bounding /12 (bounds/x.py:3)")


def test_nobody_is_named_while_all_have_come_as_far(world: World) -> None:
    enter(world, 7)
    for rank in (1, 2):
        world.says(rank, counts=all_of(7 + rank))
    assert world.look(10 * TIMEOUT_S) is None


def test_a_rank_that_comes_on_slowly_is_not_named(world: World) -> None:
    enter(world, 50)
    world.says(2, counts=all_of(50))
    for count in range(1, 10):
        world.says(1, counts=all_of(count))
        assert world.look(TIMEOUT_S - 1) is None


def test_a_rank_that_works_for_all_is_waited_for_until_after_the_deadline(world: World) -> None:
    enter(world, 3)
    world.says(2, counts=all_of(3))
    world.says(1, counts=all_of(2), patient=True, step="stage mip")
    assert world.look(20 * TIMEOUT_S) is None
    world.left_s = -module.GRACE_S - 1
    found = world.look(1)
    assert found is not None and found.rank == 1


def test_one_that_is_patient_and_silent_is_not_waited_for(world: World) -> None:
    enter(world, 3)
    world.says(2, counts=all_of(3))
    world.says(1, counts=all_of(2), patient=True)
    assert world.look(2) is None
    found = world.look(module.STALE_S + 3, silent=(1,))
    assert found is not None and found.rank == 1 and "no sign of life" in found.why


def test_the_one_that_holds_up_the_others_is_named_not_one_that_waits_itself(world: World) -> None:
    enter(world, 5)
    enter(world, 50, (0, 2))
    world.says(1, counts={**all_of(4), "1,2": 9}, waits_in="gather")  # waits for rank 2 in a group of the two
    world.says(2, counts={**all_of(4), "1,2": 8, "0,2": 50})
    found = world.look(3 * TIMEOUT_S)
    assert found is not None and found.rank == 2


def test_groups_are_counted_apart(world: World) -> None:
    enter(world, 90, (0, 1))
    enter(world, 2)
    world.says(1, counts={**all_of(2), "0,1": 90})
    world.says(2, counts=all_of(2))
    assert world.look(3 * TIMEOUT_S) is None


def test_a_process_that_is_gone_is_named_at_once_unless_it_said_goodbye(world: World) -> None:
    enter(world, 1)
    for rank in (1, 2):
        world.says(rank, counts=all_of(1))
    assert world.look(1) is None
    world.dead.add(1002)
    found = world.look(1)
    assert found is not None and found.rank == 2 and found.sure and found.why == "is gone"
    world.notes.put("left/2", "done")
    assert world.look(1) is None


def test_numbers_of_another_machines_processes_say_nothing_here(world: World) -> None:
    world.says(2, machine="elsewhere", counts=all_of(0))
    world.dead.add(1002)
    assert world.look(3) is None


def test_ranks_that_still_import_are_given_time(world: World) -> None:
    enter(world, 1)
    del world.beats[2]
    world.says(1, counts=all_of(1))
    assert world.look(module._MEET_S - 1) is None
    found = world.look(5)
    assert found is not None and found.rank == 2 and "has not arrived" in found.why
    assert found.line(3).endswith("none (it has not said a word)")


def test_after_the_deadline_nothing_waits_longer_than_the_grace(world: World) -> None:
    enter(world, 2)
    world.says(1, counts=all_of(2))
    world.says(2, counts=all_of(1))
    world.left_s = -module.GRACE_S - 0.1
    found = world.look(1)
    assert found is not None and found.rank == 2


def test_beats_say_what_the_rank_does(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.watch.at("stage bab")
    world.watch.entering("agree", (0, 1, 2))
    world.watch._put_beat()
    beat = world.watch.beat_of(0)
    assert beat is not None and beat.counts == all_of(1)
    assert step_of(beat) == "waiting in agree, stage bab"
