"""Traffic of recorded work counts when it is replayed, not when it is recorded."""

from __future__ import annotations

import torch

from auto_LiRPA.parallel.counters import Counters

CPU = torch.device("cpu")


def test_replays_count_as_often_as_they_are_made() -> None:
    counters = Counters()
    with counters.collective("reduce", 100, CPU):
        pass
    with counters.recording() as counts:
        for _ in range(2):
            with counters.collective("reduce", 8, CPU), counters.fetch("weights", 32, CPU):
                pass
    assert (counters.collectives["reduce"].calls, counters.collectives["reduce"].bytes) == (1, 100)
    assert counters.collectives["weights"].calls == 0
    for _ in range(3):
        counters.replayed(counts)
    assert counters.replays == 3
    assert (counters.collectives["reduce"].calls, counters.collectives["reduce"].bytes) == (7, 148)
    assert (counters.collectives["weights"].calls, counters.collectives["weights"].bytes) == (6, 192)
    # how long replays take nobody knows: they add no time
    assert counters.collectives["reduce"].seconds == counters.collectives["reduce"].timed_seconds
    assert counters.collectives["weights"].seconds == 0


def test_recorded_calls_are_not_timed() -> None:
    counters = Counters()
    with counters.recording(), counters.collective("reduce", 8, CPU):
        pass
    assert counters.collectives["reduce"].timed_calls == 0
