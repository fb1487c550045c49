"""Checkpoints: whole or refused, whatever happens while one is written; any number of ranks; never of another run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import complete_verifier.bab.checkpoint as writing
from auto_LiRPA.errors import ConfigError
from complete_verifier.bab.checkpoint import MANIFEST, Checkpoint, CheckpointWriter, Fingerprint, Snapshot
from complete_verifier.bab.checkpoint_root import ledger_of, ledger_tensors, root_result, root_tensors
from complete_verifier.bab.ledger import Leaf, Ledger
from complete_verifier.bab.tensor_files import map_tensors, write_tensors
from tests.bab.problems import incomplete, random_case

PRINT = Fingerprint("net", "prop", {"bab.tree_traversal": "depth_first"})
ROOT = {"box": torch.randn(3, 2), "proven": torch.tensor([True, False])}


def pieces(numbers: list[list[int]]) -> list[dict[str, Tensor]]:
    return [{"id": torch.tensor(part), "value": torch.tensor(part).half().unsqueeze(1) / 4} for part in numbers]


def snapshot(rounds: int, numbers: list[list[int]]) -> Snapshot:
    return Snapshot({"rounds": rounds}, pieces(numbers), {"leaf": torch.tensor([rounds])})


def writer(folder: Path, **changes: object) -> CheckpointWriter:
    return CheckpointWriter(folder, replace(PRINT, **changes), 1.0, ROOT)  # type: ignore[arg-type]


def ids(found: Checkpoint, rank: int = 0, world_size: int = 1) -> list[int]:
    out = []
    for piece in found.pieces(rank, world_size):
        assert torch.equal(piece["value"].flatten() * 4, piece["id"].half())
        out += piece["id"].tolist()
    return out


def test_what_is_written_is_read(tmp_path: Path) -> None:
    mine = writer(tmp_path / "new")
    for rounds in (1, 2):
        assert mine.write(snapshot(rounds, [[3, 1], [], [rounds]]))
        found = Checkpoint.read(tmp_path / "new")
        found.check(PRINT)
        assert (found.state, found.rows, ids(found)) == ({"rounds": rounds}, 3, [3, 1, rounds])
        assert torch.equal(found.extra()["leaf"], torch.tensor([rounds]))
        for name, tensor in ROOT.items():
            assert torch.equal(found.root()[name], tensor)
    # files of the first one are gone; the root is written once
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert len([name for name in names if "root" in name]) == 1 and len(names) == 6
    assert all("00000002" in name or "root" in name or name == MANIFEST for name in names)


def test_another_run_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    """Its first checkpoint replaces the old one, and until then the old one stays readable."""
    writer(tmp_path).write(snapshot(1, [[1, 2]]))
    found, second = Checkpoint.read(tmp_path), writer(tmp_path)
    second.write_parts(pieces([[7]]))
    assert ids(Checkpoint.read(tmp_path)) == [1, 2]
    second.write(snapshot(2, [[9]]))
    assert ids(Checkpoint.read(tmp_path)) == [9]
    assert found.rows == 2


Step = Callable[..., object]


class Killed(BaseException):
    """As SIGKILL: nothing of ours runs afterwards but what Python unwinds."""


def steps_of_a_write(monkeypatch: pytest.MonkeyPatch, fail_at: int | None) -> list[str]:
    """Names of the steps that change the folder; the one at ``fail_at`` does half its work and dies."""
    seen: list[str] = []

    def counted(name: str, original: Step, half: Step | None) -> Step:
        def call(*args: object, **kwargs: object) -> object:
            seen.append(name)
            if len(seen) - 1 == fail_at:
                if half is not None:
                    half(*args, **kwargs)
                raise Killed
            return original(*args, **kwargs)

        return call

    def torn(path: Path, tensors: dict[str, Tensor], durable: bool) -> None:
        write_tensors(path, tensors, durable=durable)
        os.truncate(path, path.stat().st_size // 2)

    monkeypatch.setattr(writing, "write_tensors", counted("part", write_tensors, torn))
    monkeypatch.setattr(json, "dumps", counted("dumps", json.dumps, None))
    monkeypatch.setattr(os, "fsync", counted("fsync", os.fsync, None))
    monkeypatch.setattr(os, "replace", counted("replace", os.replace, None))
    monkeypatch.setattr(Path, "unlink", counted("unlink", Path.unlink, None))
    return seen


def test_killed_at_any_step_one_of_the_two_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old checkpoint or the new one, whole."""
    first = tmp_path / "first"
    writer(first).write(snapshot(1, [[1, 2], [3]]))
    with monkeypatch.context() as patch:
        steps = steps_of_a_write(patch, None)
        shutil.copytree(first, tmp_path / "all")
        writer(tmp_path / "all").write(snapshot(2, [[4], [5, 6]]))
    assert {"part", "fsync", "replace", "unlink"} <= set(steps)
    seen = set()
    for fail_at in range(len(steps)):
        folder = tmp_path / f"killed-{fail_at}"
        shutil.copytree(first, folder)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            steps_of_a_write(patch, fail_at)
            writer(folder).write(snapshot(2, [[4], [5, 6]]))
        found = Checkpoint.read(folder)
        assert (found.state["rounds"], ids(found)) in ((1, [1, 2, 3]), (2, [4, 5, 6]))
        seen.add(found.state["rounds"])
        # what was left over does not disturb the next one, and goes with it
        writer(folder).write(snapshot(3, [[8]]))
        assert ids(Checkpoint.read(folder)) == [8] and len(list(folder.iterdir())) == 4
    assert seen == {1, 2}


def test_a_damaged_file_is_never_believed(tmp_path: Path) -> None:
    """Every file, cut short at the front, middle and end, gone, and with single bits flipped."""
    whole = tmp_path / "whole"
    writer(whole).write(snapshot(1, [[1, 2], [3]]))
    for path in sorted(whole.iterdir()):
        content = path.read_bytes()
        places = {0, 7, len(content) // 3, len(content) // 2, len(content) - 1}
        damages: list[bytes | None] = [None, b"", content[:-1], content[: len(content) // 2], content + b"\n\0"]
        damages += [content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :] for at in sorted(places)]
        for damage in damages:
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage)
            with pytest.raises(ConfigError) as caught:
                Checkpoint.read(whole)
            message = str(caught.value)
            assert "\n" not in message and "--resume" in message
            assert str(path) in message or (damage is None and str(whole) in message)
        path.write_bytes(content)
    assert ids(Checkpoint.read(whole)) == [1, 2, 3]


def test_a_manifest_of_another_kind(tmp_path: Path) -> None:
    for text in ("[]", "{}", "3", '{"version": 1}', "\xff"):
        (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match="damaged"):
            Checkpoint.read(tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint"):
        Checkpoint.read(tmp_path / "nowhere")


def test_another_version_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(writing, "VERSION", 99)
        writer(tmp_path).write(snapshot(1, [[1]]))
    with pytest.raises(ConfigError, match="format 99"):
        Checkpoint.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "other"}, "another network"),
        ({"specification": "other"}, "another property"),
        ({"settings": {}}, "bab.tree_traversal = depth_first, now it is its default"),
        ({"settings": {**PRINT.settings, "solver.beta-crown.iteration": "9"}}, "beta-crown.iteration = its default"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    writer(tmp_path).write(snapshot(1, [[1]]))
    with pytest.raises(ConfigError, match=words) as caught:
        Checkpoint.read(tmp_path).check(replace(PRINT, **changes))  # type: ignore[arg-type]
    assert str(tmp_path) in str(caught.value) and "--resume" in str(caught.value)


@pytest.mark.parametrize("writers", [1, 2, 3])
@pytest.mark.parametrize("readers", [1, 2, 3, 5])
def test_any_number_of_ranks_shares_the_domains_out(tmp_path: Path, writers: int, readers: int) -> None:
    numbers = [[10 * rank + k for k in range(rank + 4)] for rank in range(writers)]
    ranks = [writer(tmp_path) for _ in range(writers)]
    parts = [mine.write_parts(pieces([numbers[k][:3], numbers[k][3:]]), rank=k) for k, mine in enumerate(ranks)]
    ranks[0].publish(snapshot(1, []), parts)
    found = Checkpoint.read(tmp_path)
    shares = [ids(found, rank, readers) for rank in range(readers)]
    assert sorted(sum(shares, [])) == sorted(sum(numbers, []))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_folder_that_cannot_be_written_does_not_end_the_search(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = writer(tmp_path)
    assert mine.write(snapshot(1, [[1]]))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_tensors", full)
    assert not mine.write(snapshot(2, [[2]]))
    assert "No space left" in caplog.text and "\n" not in caplog.records[0].getMessage()
    assert ids(Checkpoint.read(tmp_path)) == [1]


def test_checkpoints_take_a_small_share_of_the_time(tmp_path: Path) -> None:
    """Where writing takes long, the next one comes later than asked for."""
    time, cost = [0.0], 5.0

    def slow() -> Iterator[dict[str, Tensor]]:
        time[0] += cost
        yield {"id": torch.zeros(2**20, dtype=torch.int64)}

    mine = CheckpointWriter(tmp_path, PRINT, 1.0, ROOT, now=lambda: time[0])
    size = 8 * 2**20
    while time[0] < 1000:
        time[0] += 0.5
        if mine.due(size):
            mine.write(Snapshot({}, slow(), {}))
    assert 3 <= mine.written and mine.seconds <= 0.1 * time[0]
    time[0] += 1e6
    assert mine.due(size) and not mine.due(size, seconds_left=5.0)


def test_the_root_comes_back_bit_for_bit() -> None:
    """Boxes, relaxations, start nodes and slopes: what the resumed search bounds with is what the first one did."""
    case = random_case("residual", 3)
    start = incomplete(case.problem)
    again = root_result(case.problem, root_tensors(start))
    assert torch.equal(again.lower, start.lower) and torch.equal(again.proven, start.proven)
    assert list(again.intermediate.boxes) == list(start.intermediate.boxes)
    for node, box in start.intermediate.boxes.items():
        assert torch.equal(box.lower, again.intermediate.boxes[node].lower)
        assert torch.equal(box.upper, again.intermediate.boxes[node].upper)
    assert again.slopes.keys() == start.slopes.keys()
    assert all(torch.equal(again.slopes[k], start.slopes[k]) for k in start.slopes)
    for ours, theirs in zip(again.intermediate.starts, start.intermediate.starts, strict=True):
        assert (ours.node, ours.tiles) == (theirs.node, theirs.tiles) and torch.equal(ours.index, theirs.index)
    assert again.intermediate.relaxations.keys() == start.intermediate.relaxations.keys()
    for node, relaxation in start.intermediate.relaxations.items():
        other, spec = again.intermediate.relaxations[node].alpha, relaxation.alpha
        assert (spec is None) == (other is None)
        if spec is not None and other is not None:
            assert torch.equal(spec.index, other.index) and torch.equal(spec.initial, other.initial)


def test_the_ledger_comes_back() -> None:
    leaves = [
        Leaf(2, frozenset({(4, 1), (1, -1)}), "bound"),
        Leaf(0, frozenset(), "lp"),
        Leaf(1, frozenset({(0, -1)}), "bound"),
    ]
    assert ledger_of(ledger_tensors(Ledger(list(leaves)))).leaves == leaves
    assert ledger_of(ledger_tensors(Ledger())).leaves == [] and ledger_of({}).leaves == []


def test_files_are_safetensors_that_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "d": torch.randn(3, 2).double(),
        "h": torch.randn(5).half(),
        "b": torch.randn(3).bfloat16(),
        "i": torch.arange(7, dtype=torch.int8),
        "t": torch.tensor([True, False, True]),
        "e": torch.zeros(4, 0),
        "s": torch.tensor(3.5),
        "v": torch.arange(12).reshape(3, 4).T,
    }
    written = write_tensors(tmp_path / "x", tensors, durable=True)
    assert written.bytes == (tmp_path / "x").stat().st_size
    for found in (load_file(tmp_path / "x"), map_tensors(tmp_path / "x")):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
