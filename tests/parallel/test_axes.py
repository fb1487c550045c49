"""Layout of ranks: which settings fit which number of ranks, what contradicts, and who works with whom."""

from __future__ import annotations

from typing import Any

import pytest

from auto_LiRPA.errors import ConfigError
from auto_LiRPA.parallel.axes import AXES, Axes, resolve_axes
from auto_LiRPA.parallel.settings import ParallelSettings


def _axes(world: int, **settings: Any) -> Axes:
    return resolve_axes(ParallelSettings(**settings), world)


@pytest.mark.parametrize("mode", ["single", "fsdp", "tp", "offload", "auto"])
def test_one_rank_has_everything(mode: Any) -> None:
    assert _axes(1, mode=mode) == Axes("single" if mode == "auto" else mode, 1, 1, 1, True)
    assert _axes(1, mode=mode, rows="shard", domains="shard", mesh={"rows": 1}).rows == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mode": "auto"}, Axes("single", 1, 3, 3, True)),
        ({"mode": "fsdp"}, Axes("fsdp", 3, 3, 3, True)),
        ({"mode": "fsdp", "rows": "replicate", "domains": "replicate"}, Axes("fsdp", 3, 1, 1, True)),
        ({"mode": "fsdp", "rows": "replicate"}, Axes("fsdp", 3, 1, 3, True)),
        ({"mode": "offload"}, Axes("offload", 1, 3, 3, True)),
        ({"mode": "offload", "rows": "shard", "domains": "replicate"}, Axes("offload", 1, 3, 1, True)),
        ({"mode": "single", "rows": "shard"}, Axes("single", 1, 3, 3, True)),
        ({"mode": "single", "domains": "shard", "rows": "replicate"}, Axes("single", 1, 1, 3, True)),
        ({"mode": "tp"}, Axes("tp", 3, 1, 1, True)),
        ({"mode": "tp", "rows": "replicate", "domains": "replicate"}, Axes("tp", 3, 1, 1, True)),
    ],
)
def test_without_a_mesh_every_axis_lies_over_all_ranks(settings: dict[str, Any], expected: Axes) -> None:
    assert _axes(3, **settings) == expected


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"mode": "fsdp", "mesh": {"weights": 2, "domains": 3}}, (2, 1, 3)),
        ({"mode": "tp", "mesh": {"weights": 2, "rows": 3}}, (2, 3, 1)),
        ({"mode": "tp", "mesh": {"weights": 2, "domains": 3}, "domains": "shard"}, (2, 1, 3)),
        ({"mode": "single", "mesh": {"rows": 6}}, (1, 6, 1)),
        ({"mode": "offload", "mesh": {"rows": 2, "domains": 3}, "rows": "shard"}, (1, 2, 3)),
        ({"mode": "auto", "mesh": {"rows": 2, "domains": 3}}, (1, 2, 3)),
        ({"mode": "fsdp", "mesh": {"weights": 6}, "rows": "replicate"}, (6, 1, 1)),
    ],
)
def test_a_mesh_names_the_sizes(settings: dict[str, Any], sizes: tuple[int, int, int]) -> None:
    axes = _axes(6, **settings)
    assert (axes.weights, axes.rows, axes.domains) == sizes
    assert not axes.joined


@pytest.mark.parametrize(
    ("world", "settings", "line"),
    [
        (1, {"mesh": {"rows": 2}}, "parallel.mesh = {'rows': 2}: for several ranks; start them with abcrown --nproc N"),
        (2, {"mode": "single"}, "parallel.mode = single: 2 ranks would all do the same; set parallel.rows or"),
        (2, {"mode": "single", "rows": "replicate"}, "parallel.mode = single: 2 ranks would all do the same"),
        (3, {"mode": "single", "domains": "replicate"}, "parallel.mode = single: 3 ranks would all do the same"),
        (2, {"mode": "offload", "rows": "replicate", "domains": "replicate"}, "parallel.mode = offload: 2 ranks would"),
        (2, {"mode": "tp", "rows": "shard"}, "parallel.rows = shard: with mode tp only in a mesh, such as"),
        (2, {"mode": "tp", "domains": "shard"}, "parallel.domains = shard: with mode tp only in a mesh, such as"),
        (4, {"mode": "fsdp", "mesh": {"ranks": 4}}, "parallel.mesh: ranks is no axis; expected some of weights, rows"),
        (4, {"mode": "fsdp", "mesh": {"weights": 3}}, "its sizes have the product 3, but there are 4 ranks"),
        (4, {"mode": "fsdp", "mesh": {"weights": -2, "rows": -2}}, "its sizes have the product 4, but there are 4"),
        (4, {"mode": "single", "mesh": {"weights": 4}}, "weights = 4 needs parallel.mode fsdp or tp, not single"),
        (4, {"mode": "offload", "mesh": {"weights": 2, "rows": 2}}, "needs parallel.mode fsdp or tp, not offload"),
        (4, {"mode": "auto", "mesh": {"weights": 4}}, "needs parallel.mode fsdp or tp, not"),
        (4, {"mode": "fsdp", "mesh": {"weights": 4}, "rows": "shard"}, "rows = 1 contradicts parallel.rows = shard"),
        (4, {"mode": "fsdp", "mesh": {"domains": 4}, "domains": "replicate"}, "domains = 4 contradicts"),
    ],
)
def test_contradictions_name_the_key_and_the_mend(world: int, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as found:
        _axes(world, **settings)
    text = str(found.value)
    assert line in text
    assert text.startswith("parallel.")
    assert "\n" not in text


def test_members_of_a_mesh_share_all_but_one_coordinate() -> None:
    axes = _axes(12, mode="fsdp", mesh={"weights": 2, "rows": 3, "domains": 2})
    for rank in range(12):
        place = (rank // 6, rank // 2 % 3, rank % 2)
        for position, axis in enumerate(AXES):
            members = axes.members(axis, rank, 12)
            places = [(m // 6, m // 2 % 3, m % 2) for m in members]
            assert rank in members and len(members) == getattr(axes, axis)
            assert [p[position] for p in places] == list(range(getattr(axes, axis)))
            assert all(p[:position] + p[position + 1 :] == place[:position] + place[position + 1 :] for p in places)


def test_members_of_joined_axes_are_all_ranks_or_one() -> None:
    axes = _axes(3, mode="fsdp", rows="replicate")
    assert axes.members("weights", 1, 3) == (0, 1, 2)
    assert axes.members("rows", 1, 3) == (1,)
    assert axes.members("domains", 2, 3) == (0, 1, 2)
