"""A search that is cut off between rounds and taken up from its checkpoint: same verdict, same tree, nothing lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch

import complete_verifier.bab.store as storing
from auto_LiRPA.errors import ConfigError
from complete_verifier.bab.checkpoint import Checkpoint, CheckpointWriter, Fingerprint, Snapshot
from complete_verifier.bab.checkpoint_root import root_result, root_tensors
from complete_verifier.bab.digest import network_digest, question_digest
from complete_verifier.bab.keeper import Keeper
from complete_verifier.bab.relu_bounding import ReluBounder
from complete_verifier.bab.search import search
from complete_verifier.bab.settings import BabProgress, BabResult, BabSettings
from complete_verifier.bab.store import StoreBudget
from complete_verifier.bab.tensor_files import map_tensors, write_tensors
from tests.bab.problems import KINDS, Case, incomplete, random_case

SETTINGS = BabSettings(
    batch_size=4, iterations=4, lr_alpha=0.1, method="babsr", min_batch_ratio=0.0, record_ledger=True
)
PRINT = Fingerprint("n", "p", {})


class Cut(BaseException):
    """The process is gone."""


def cut_after(rounds: int) -> Callable[[BabProgress], None]:
    """Ends the search once it has done so many more rounds."""
    seen = [0]

    def progress(_: BabProgress) -> None:
        seen[0] += 1
        if seen[0] >= rounds:
            raise Cut

    return progress


def begin(case: Case, folder: Path, settings: BabSettings, rounds: int, every_s: float = 0.0) -> BabResult | None:
    """A new search that is cut off after some rounds; None if it was."""
    start = incomplete(case.problem)
    writer = CheckpointWriter(folder, PRINT, every_s, root_tensors(start))
    try:
        return search(case.problem, start, settings, cut_after(rounds), keeper=Keeper(writer, None))
    except Cut:
        return None


def go_on(case: Case, folder: Path, settings: BabSettings, rounds: int, every_s: float = 0.0) -> BabResult | None:
    """The same from the folder's checkpoint: nothing but the problem is known."""
    found = Checkpoint.read(folder)
    start = root_result(case.problem, found.root())
    writer = CheckpointWriter(folder, PRINT, every_s, root_tensors(start))
    try:
        return search(case.problem, start, settings, cut_after(rounds), keeper=Keeper(writer, found))
    except Cut:
        return None


@lru_cache(maxsize=4)
def hard(kind: str, holds: bool) -> Case:
    """A problem of some rounds, but not of many."""
    for seed in range(200):
        case = random_case(kind, seed, 12)
        if case.holds == holds and not bool(incomplete(case.problem).proven.all()):
            done = search(case.problem, incomplete(case.problem), replace(SETTINGS, max_iterations=30))
            if 6 <= done.rounds < 30:
                return case
    raise AssertionError("no such problem")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every round, however little time that leaves."""
    monkeypatch.setattr(CheckpointWriter, "due", lambda self, size, seconds_left: True)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("kind", KINDS)
def test_cut_off_again_and_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger of all parts covers the root (the search itself refuses it if not); also where memory is scarce."""
    case = hard(kind, holds=True)
    for name, budget in (("memory", StoreBudget(2**40, 0)), ("disk", StoreBudget(500, 500, tmp_path / "spill"))):
        monkeypatch.setattr(storing.StoreBudget, "of", classmethod(lambda cls, device, folder=None, b=budget: b))
        folder, gen = tmp_path / name, random.Random(7)
        result, parts = begin(case, folder, SETTINGS, gen.randint(1, 3)), 1
        while result is None:
            ids = [i for piece in Checkpoint.read(folder).pieces() for i in piece["0000"].tolist()]
            assert len(set(ids)) == len(ids)
            result, parts = go_on(case, folder, SETTINGS, gen.randint(1, 5)), parts + 1
        assert result.closed and result.stopped_by == "all domains closed"
        assert parts > 2


@pytest.mark.usefixtures("often")
def test_cut_off_within_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parents of a round that is lost are in the checkpoint before it: the leaves still cover the root."""
    case, left = hard("mlp", holds=True), [2]
    bound = ReluBounder.bound

    def cut_in(self: ReluBounder, *given: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise Cut
        return bound(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(ReluBounder, "bound", cut_in)
    result, parts = begin(case, tmp_path, SETTINGS, 10**6), 1
    while result is None:
        left[0] = 3
        result, parts = go_on(case, tmp_path, SETTINGS, 10**6), parts + 1
    assert result.closed and parts > 2


@pytest.mark.usefixtures("often")
def test_the_tree_is_the_same_as_without_the_cut(tmp_path: Path) -> None:
    """In the synchronous schedule nothing depends on time: as many rounds and domains, wherever it is cut."""
    settings = replace(SETTINGS, synchronous=True)
    case = hard("mlp", holds=True)
    whole = search(case.problem, incomplete(case.problem), settings)
    for rounds in range(1, whole.rounds, max(1, whole.rounds // 4)):
        folder = tmp_path / str(rounds)
        assert begin(case, folder, settings, rounds) is None
        again = go_on(case, folder, settings, 10**6)
        assert again is not None
        ours, theirs = ((r.closed, r.rounds, r.domains_visited) for r in (again, whole))
        assert ours == theirs


@pytest.mark.usefixtures("often")
def test_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    """After a limit of 6 rounds: the same counters and ids whether it was cut off after 3 or not."""
    case, limited = hard("mlp", holds=True), replace(SETTINGS, synchronous=True, max_iterations=6)
    assert begin(case, tmp_path / "cut", limited, 3) is None
    assert go_on(case, tmp_path / "cut", limited, 10**6) is not None
    assert begin(case, tmp_path / "whole", limited, 10**6) is not None
    cut, whole = (Checkpoint.read(tmp_path / name) for name in ("cut", "whole"))
    first, second = ({k: v for k, v in found.state.items() if k != "seconds"} for found in (cut, whole))
    assert first == second and int(str(first["next_id"])) > 6
    ids = [sorted(i for piece in found.pieces() for i in piece["0000"].tolist()) for found in (cut, whole)]
    assert ids[0] == ids[1]


@pytest.mark.usefixtures("often")
def test_what_is_violated_is_not_proved_after_a_cut(tmp_path: Path) -> None:
    case = hard("mlp", holds=False)
    result = begin(case, tmp_path, SETTINGS, 2)
    while result is None:
        result = go_on(case, tmp_path, SETTINGS, 40)
    assert not result.closed


def test_killed_within_a_round_the_checkpoint_before_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parents of the round that was lost are still in the checkpoint."""
    case = hard("mlp", holds=True)
    assert begin(case, tmp_path, SETTINGS, 3, every_s=10**6) is None
    found = Checkpoint.read(tmp_path)
    assert found.state["rounds"] == 0 and found.rows >= 1  # the roots, which are saved before the first round
    result = go_on(case, tmp_path, SETTINGS, 10**6)
    assert result is not None and result.closed


@pytest.mark.usefixtures("often")
def test_a_limit_saves_what_is_open(tmp_path: Path) -> None:
    """A run with a limit ends undecided; one with a higher limit goes on where it was."""
    case = hard("mlp", holds=True)
    first = begin(case, tmp_path, replace(SETTINGS, max_iterations=4), 10**6)
    assert first is not None and (first.closed, first.stopped_by) == (False, "round limit 4")
    second = go_on(case, tmp_path, SETTINGS, 10**6)
    assert second is not None and second.closed
    assert second.domains_visited > first.domains_visited and second.rounds > 4


@pytest.mark.usefixtures("often")
def test_undecided_leaves_are_remembered(tmp_path: Path) -> None:
    """A leaf that nobody decided before the cut makes the end `unknown` after it too."""
    case = hard("mlp", holds=True)
    assert begin(case, tmp_path, SETTINGS, 2) is None
    found = Checkpoint.read(tmp_path)
    again = CheckpointWriter(tmp_path, PRINT, 0.0, found.root())
    again.write(Snapshot({**found.state, "undecided_leaves": 1}, list(found.pieces()), found.extra()))
    result = go_on(case, tmp_path, SETTINGS, 10**6)
    assert result is not None and not result.closed and "1 leaves" in result.stopped_by


@pytest.mark.usefixtures("often")
def test_sub_problems_of_another_form_are_refused(tmp_path: Path) -> None:
    case = hard("mlp", holds=True)
    assert begin(case, tmp_path, SETTINGS, 2) is None
    found = Checkpoint.read(tmp_path)
    wider = [{**piece, "0004": piece["0004"].float()} for piece in found.pieces()]
    CheckpointWriter(tmp_path, PRINT, 0.0, found.root()).write(Snapshot(found.state, wider, {}))
    with pytest.raises(ConfigError, match="another form") as caught:
        go_on(case, tmp_path, SETTINGS, 1)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_out_of_memory_halves_the_batch_and_the_proof_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounding refuses more than 3 domains at a time: same verdict, and the ledger still covers the root."""
    case = hard("mlp", holds=True)
    refused = [0]
    bound = ReluBounder.bound

    def scarce(self: ReluBounder, domains: object, *rest: object) -> object:
        if len(domains) > 6:  # type: ignore[arg-type]
            refused[0] += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return bound(self, domains, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ReluBounder, "bound", scarce)
    settings = replace(SETTINGS, batch_size=64)
    result = search(case.problem, incomplete(case.problem), settings)
    assert result.closed and refused[0] > 0
    fixed = search(case.problem, incomplete(case.problem), replace(settings, synchronous=True))
    assert not fixed.closed and "out of memory" in fixed.stopped_by


def test_digests_tell_questions_apart() -> None:
    """One weight, one clause or one side of the box in the last bit: another question. The same twice: the same."""
    case, other = random_case("mlp", 1), random_case("mlp", 2)
    assert network_digest(case.problem.graph) == network_digest(random_case("mlp", 1).problem.graph)
    assert network_digest(case.problem.graph) != network_digest(other.problem.graph)
    problem = case.problem
    assert question_digest(problem) == question_digest(random_case("mlp", 1).problem)
    rhs = problem.clauses.rhs.clone()
    rhs.flatten()[0] = torch.nextafter(rhs.flatten()[0], torch.tensor(torch.inf, dtype=rhs.dtype))
    changed = replace(problem, clauses=replace(problem.clauses, rhs=rhs))
    assert question_digest(problem) != question_digest(changed)
    layer = next(node for node in problem.graph.nodes if type(node.op).__name__ == "Linear")
    before = network_digest(problem.graph)
    for block in layer.op.weight.blocks():  # type: ignore[attr-defined]
        block.data.flatten()[-1] = torch.nextafter(block.data.flatten()[-1], torch.tensor(9.0, dtype=block.data.dtype))
    assert network_digest(problem.graph) != before


def test_a_mapped_file_is_not_changed_by_the_search(tmp_path: Path) -> None:
    """Rows that were read are copies: the file may be unlinked and the copy written to."""
    write_tensors(tmp_path / "f", {"a": torch.arange(4.0)}, durable=False)
    copied = {name: t.clone() for name, t in map_tensors(tmp_path / "f").items()}
    copied["a"][0] = 7
    assert torch.equal(map_tensors(tmp_path / "f")["a"], torch.arange(4.0))
