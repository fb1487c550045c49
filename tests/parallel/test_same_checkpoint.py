"""Ranks that would go on from different checkpoints: their sub-problems together would cover nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from auto_LiRPA.errors import ConfigError
from auto_LiRPA.parallel.groups import Group
from complete_verifier.bab.checkpoint import Checkpoint
from complete_verifier.bab.keeper import Keeper
from complete_verifier.bab.search import search
from complete_verifier.bab.settings import BabSettings
from complete_verifier.driver.keeping import Keeping
from tests.bab.problems import incomplete, random_case


@pytest.mark.parametrize("other", ["none", "another", "the same"])
def test_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    problem = random_case("mlp", 19, 24).problem
    start = incomplete(problem)
    first = Keeping(tmp_path, 1e9, {}, None)
    kept = []
    for rounds in (1, 2):
        settings = BabSettings(batch_size=4, iterations=2, synchronous=True, max_iterations=rounds)
        keeper = first.keeper(problem, start)
        assert isinstance(keeper, Keeper)
        search(problem, start, settings, keeper=keeper)
        kept.append(Checkpoint.read(tmp_path))
    assert kept[0].content != kept[1].content
    theirs = {"none": None, "another": kept[0].content, "the same": kept[1].content}[other]

    def told(self: Group, mine: Any) -> list[Any]:
        return [mine, theirs]

    monkeypatch.setattr(Group, "objects", told)
    keeping = replace(first, resumed=kept[1])
    if other == "the same":
        assert keeping.start(problem) is not None
        return
    with pytest.raises(ConfigError, match="different checkpoints"):
        keeping.start(problem)
