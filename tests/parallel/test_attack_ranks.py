"""Attacks over ranks: one process's starts, shared out; what one rank finds is everybody's; nobody waits in vain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.axes import Mode
from auto_LiRPA.parallel.context import DistributedContext
from complete_verifier.attack.confirm import confirm
from complete_verifier.attack.settings import AttackSettings
from complete_verifier.attack.team import Team
from complete_verifier.spec.property import Property
from tests.attack.nets import box, linear, load, prop, random_layers, region, row, save
from tests.parallel.attack_workers import FSDP, Attack
from tests.parallel.launching import Launch, launch, once

SIZES = (1, 2, 3)
UNIT = box(("0", "1"), ("0", "1"))
QUICK = AttackSettings(steps=20, restarts=6)
PLAIN = AttackSettings(steps=10, restarts=7, scouting=False)
WORKER = "tests.parallel.attack_workers:attacks"

Found = dict[str, dict[str, Any]]  # by the name of the attack


def _asks(limit: float) -> Property:
    return prop(region(UNIT, [row({0: "1"}, f"{limit:.6f}")]))


def _cases(folder: Path) -> list[Attack]:
    net = save(random_layers(3, 2, 16, 16, 1), folder / "net.onnx")
    axis = torch.linspace(0, 1, 60)
    lowest = float(evaluate(load(net), torch.cartesian_prod(axis, axis)).min())
    right = save(linear([1, 0]), folder / "right.onnx")
    shifted = save(linear([1, 0], bias=[-1e-6]), folder / "near.onnx")
    wrong = save(linear([-1, 0]), folder / "wrong.onnx")
    there, nowhere = _asks(lowest + 1e-3), _asks(lowest - 10)
    nearly, refused = prop(region(UNIT, [row({0: "-1"}, "-1")])), _asks(-0.1)
    diverse = AttackSettings(steps=10, restarts=4, mode="diversed_GAMA_PGD")
    return [
        Attack("there", net, there, QUICK),
        Attack("there, diversified", net, there, diverse),
        Attack("there, fsdp", net, there, QUICK, FSDP),
        Attack("there, fsdp, skewed", net, there, QUICK, FSDP, skew=True),
        Attack("one rank only", net, there, QUICK, only_rank=1),
        Attack("one rank only, fsdp", net, there, QUICK, FSDP, only_rank=1),
        Attack("nowhere", net, nowhere, PLAIN),
        Attack("nowhere, skewed", net, nowhere, QUICK, skew=True),
        Attack("nowhere, fsdp", net, nowhere, PLAIN, FSDP),
        Attack("near miss", shifted, nearly, QUICK, judge=right),
        Attack("near miss, fsdp", shifted, nearly, QUICK, FSDP, judge=right),
        Attack("refused, fsdp", wrong, refused, QUICK, FSDP, judge=right),
        Attack("late", net, nowhere, AttackSettings(steps=100_000, restarts=100), late_rank=0),
        Attack("late, fsdp", net, nowhere, AttackSettings(steps=100_000, restarts=100), FSDP, late_rank=0),
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Attack], dict[int, list[Found]]]:
    """The attacks, and by number of ranks what every rank found."""

    def run() -> tuple[list[Attack], dict[int, list[Found]]]:
        cases = _cases(tmp_path_factory.mktemp("attacks"))
        outcomes = launch([Launch(p, WORKER, cases, timeout_s=120) for p in SIZES])
        return cases, {p: one.checked() for p, one in zip(SIZES, outcomes, strict=True)}

    return once(tmp_path_factory, "attack-ranks", run)


def test_every_rank_has_the_same_answer(made: tuple[list[Attack], dict[int, list[Found]]]) -> None:
    """Also where one rank alone finds it, where onnxruntime refuses it, and where a neighbour has to stand in."""
    cases, by_size = made
    for size, ranks in by_size.items():
        for case in cases:
            every = [rank[case.name] for rank in ranks]
            expected = case.name.startswith(("there", "near miss")) or ("one rank" in case.name and size > 1)
            assert (every[0]["counterexample"] is not None) == expected, (size, case.name)
            for found in every:
                for fact in ("counterexample", "restarts", "steps", "best"):
                    assert found[fact] == every[0][fact], (size, case.name, fact)
            if expected:
                x = torch.tensor([float(v) for v in every[0]["counterexample"].x]).numpy()
                assert confirm(case.judge or case.path, case.prop, x) is not None


@pytest.mark.parametrize("name", ["nowhere", "nowhere, fsdp"])
def test_starts_are_those_of_one_process_shared_out(
    name: str, made: tuple[list[Attack], dict[int, list[Found]]]
) -> None:
    """Every start once; where their number does not divide, fewer than one more for each rank."""
    by_size = made[1]
    alone = dict(by_size[1][0][name]["drawn"])
    assert sorted(alone) == list(range(7))
    for size in SIZES[1:]:
        ranks = [dict(rank[name]["drawn"]) for rank in by_size[size]]
        every = {number: x for drawn in ranks for number, x in drawn.items()}
        assert len(every) == sum(map(len, ranks)) == -(-7 // size) * size
        assert all(torch.equal(every[number], x) for number, x in alone.items())


@pytest.mark.parametrize("name", ["nowhere, fsdp", "refused, fsdp", "near miss, fsdp", "one rank only, fsdp"])
def test_ranks_that_share_weights_fetch_as_often(
    name: str, made: tuple[list[Attack], dict[int, list[Found]]]
) -> None:
    for size in SIZES[1:]:
        every = [rank[name]["calls"] for rank in made[1][size]]
        assert all(calls == every[0] for calls in every) and sum(every[0].values()) > 10


def test_one_late_rank_ends_it_for_all(made: tuple[list[Attack], dict[int, list[Found]]]) -> None:
    for name in ("late", "late, fsdp"):
        assert all(rank[name]["seconds"] < 20 for ranks in made[1].values() for rank in ranks)


def test_ranks_of_one_tensor_parallel_network_have_the_same_starts() -> None:
    """Four ranks, two to a network: the weights' axis is the outer one."""
    one = DistributedContext.single()
    cases: list[tuple[int, Mode, int, int, int]] = [
        (3, "tp", 2, 1, 2),
        (1, "tp", 2, 1, 2),
        (2, "tp", 4, 0, 1),
        (2, "fsdp", 2, 2, 4),
        (3, "single", 1, 3, 4),
    ]
    for rank, mode, weights, index, count in cases:
        world = replace(one.world, rank=rank, size=4, members=(0, 1, 2, 3))
        team = Team.of(replace(one, mode=mode, world=world, weights=replace(world, rank=rank // 2, size=weights)))
        assert (team.index, team.count) == (index, count)
        assert list(team.starts(8, 2)) == [8 + index, 8 + index + count]
