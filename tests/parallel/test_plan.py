"""`--plan` and `parallel.mode: auto`: the table, the JSON, the choice, and what older spellings mean."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from auto_LiRPA.errors import ConfigError
from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.groups import alone
from auto_LiRPA.parallel.memory_model import H100
from auto_LiRPA.parallel.settings import ParallelSettings
from complete_verifier.config import LoadedConfig, load_config
from complete_verifier.driver.cli import main
from complete_verifier.driver.placing import Placing, placed
from complete_verifier.driver.planning import Choice, Place, Question, make_plan
from complete_verifier.driver.seat import Seat
from tests.parallel.launching import Launch, launch
from tests.support import shared_dir

TWO = Seat(rank=0, world_size=2, local_rank=0, local_world_size=2, node_rank=0, host="127.0.0.1", port=1)


def _words(network: str = "mnist-net_256x4") -> list[str]:
    folder = shared_dir("benchmarks", "mnist_fc")
    network_file, prop = folder / "onnx" / f"{network}.onnx", folder / "vnnlib" / "prop_0_0.03.vnnlib"
    return ["--onnx_path", str(network_file), "--vnnlib_path", str(prop), "--device", "cpu"]


def _plan(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    target = tmp_path / "plan.json"
    code = main(["--plan", *words, "--plan_json", str(target)], time.monotonic())
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(target.read_text()), captured.out


# -- the command ------------------------------------------------------------------------------------------
def test_a_hypothetical_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.process_time()
    found, text = _plan([*_words(), "--world_size", "64", "--gpu_mem_gib", "80"], tmp_path, capsys)
    assert time.process_time() - began < 20
    assert found["world_size"] == 64 and found["memory_gib"] == 80
    assert list(found["placements"]) == ["replicated", "fsdp", "offload", "tp"]
    for name, one in found["placements"].items():
        assert math.isclose(sum(one["parts_mib"].values()), one["peak_mib"]) and name in text
        assert one["fits"] and set(one["work"]) == {"crown", "alpha", "bab"}
    assert found["placements"]["fsdp"]["axes"] == {"weights": 64, "rows": 64, "domains": 64}
    assert found["placements"]["tp"]["axes"] == {"weights": 64, "rows": 1, "domains": 1}
    whole = found["placements"]["replicated"]["parts_mib"]["weights"]
    assert found["placements"]["fsdp"]["parts_mib"]["weights"] < whole / 20
    assert found["choice"]["mode"] == "single" and found["choice"]["reason"] in text


def test_one_rank_has_no_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, text = _plan(_words(), tmp_path, capsys)
    assert list(found["placements"]) == ["replicated", "offload"]
    assert "1 rank, each with" in text and "CPU" in text
    assert all(one["work"]["crown"]["gathered_mib"] == 0 for one in found["placements"].values())


def test_the_share_of_undecided_neurons_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, _ = _plan([*_words(), "--undecided", "10"], tmp_path, capsys)
    many, _ = _plan([*_words(), "--undecided", "100"], tmp_path, capsys)
    assert few["undecided"] == 0.1
    for kind in ("crown", "alpha"):
        times = [one["placements"]["replicated"]["work"][kind]["compute_s"] for one in (few, many)]
        assert times[0] < times[1]


def test_settings_that_are_given_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*_words(), "--world_size", "8", "--parallel_mesh", "weights=2,domains=4", "--parallel_mode", "fsdp"]
    found, _ = _plan(words, tmp_path, capsys)
    assert list(found["placements"]) == ["fsdp", "tp"]
    assert found["placements"]["fsdp"]["axes"] == {"weights": 2, "rows": 1, "domains": 4}


def test_bad_input_of_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("--undecided", "0"): '--undecided "0": expected a number > 0 and <= 100',
        ("--onnx_path", str(tmp_path / "no.onnx")): "no such file",
        ("--plan_json", str(tmp_path)): "--plan_json",
    }
    for (flag, value), line in cases.items():
        words = _words()[2:] if flag == "--onnx_path" else _words()
        assert main(["--plan", *words, flag, value], time.monotonic()) == 2
        assert line in capsys.readouterr().err
    assert main([*_words(), "--plan_json", "x.json"], time.monotonic()) == 2
    assert "--plan_json: says how a plan is made; add --plan" in capsys.readouterr().err


# -- the choice ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def question() -> Question:
    return Question.of(load_config([*_words(), "--complete_verifier", "skip"]))


def _choice(question: Question, mib: float, world: int = 4, **settings: Any) -> Choice:
    place = Place(world, mib * 2**20, replace(H100, context=0, workspace=0), "test")
    return make_plan(question, ParallelSettings(mode="auto", **settings), place).choice


def test_auto_takes_whole_weights_then_shards_then_the_host(question: Question) -> None:
    """mnist-net_256x4: 1.5 MiB of weights; without a workspace the rest is a few MiB."""
    peaks = {
        entry.name: 1.15 * entry.prediction.peak / 2**20
        for entry in make_plan(
            question, ParallelSettings(block_mib=0.05), Place(4, 0, replace(H100, context=0, workspace=0), "test")
        ).entries
    }
    assert peaks["offload"] < peaks["fsdp"] < peaks["replicated"]
    found = {name: _choice(question, peak + 0.001, block_mib=0.05) for name, peak in peaks.items() if name != "tp"}
    assert [found[name].settings.mode for name in ("replicated", "fsdp", "offload")] == ["single", "fsdp", "offload"]
    assert (found["replicated"].settings.rows, found["replicated"].settings.domains) == ("shard", "shard")
    nothing = _choice(question, 0.1, block_mib=0.05)
    assert nothing.settings.mode == "offload" and "nothing fits" in nothing.reason and "tile_rows" in nothing.reason
    for one in (*found.values(), nothing):
        assert one.settings.tile_rows == "auto" and one.settings.block_mib == 0.05
        assert "\n" not in one.line


def test_auto_keeps_to_a_mesh(question: Question) -> None:
    assert _choice(question, 1000, mesh={"weights": 2, "rows": 2}).settings.mode == "fsdp"
    assert _choice(question, 1000, mesh={"rows": 2, "domains": 2}).settings.mode == "single"


def test_all_ranks_make_one_choice_for_the_smallest_memory() -> None:
    """The last rank says that it has next to nothing: then nothing fits, for any of them."""
    words = [*_words("mnist-net_256x2"), "--complete_verifier", "skip"]
    cases = [(size, little) for size in (1, 2, 3) for little in (False, True)]
    launches = [Launch(size, "tests.parallel.plan_workers:chosen", (words, little)) for size, little in cases]
    for (size, little), outcome in zip(cases, launch(launches), strict=True):
        results = outcome.checked()
        assert len({(r["mode"], r["rows"], r["note"]) for r in results}) == 1
        note = results[0]["note"]
        if size == 1:
            assert note is None  # without ranks a mode that is not set means one device
            continue
        assert f"parallel.mode auto (by {size} ranks and no parallel.mode): {results[0]['mode']}: " in note
        assert ("nothing fits 0.0 GiB" in note) == little
        assert little or (results[0]["mode"], results[0]["rows"]) == ("single", "shard")


# -- what the configuration means --------------------------------------------------------------------------------
def _loaded(*words: str) -> LoadedConfig:
    return load_config(["--onnx_path", "net.onnx", "--vnnlib_path", "p.vnnlib", *words])


def _placing(words: tuple[str, ...], seat: Seat | None) -> Placing:
    return Placing(_loaded(*words), torch.device("cpu"), seat)


@pytest.mark.parametrize(
    ("words", "seat", "mode"),
    [
        ((), None, "single"),
        ((), TWO, "auto"),
        (("--parallel_rows", "shard"), TWO, "auto"),
        (("--parallel_mode", "single"), TWO, "single"),
        (("--parallel_mode", "fsdp"), TWO, "fsdp"),
        (("--parallel_mode", "auto"), None, "auto"),
    ],
)
def test_no_mode_means_auto_under_several_ranks(words: tuple[str, ...], seat: Seat | None, mode: str) -> None:
    assert _placing(words, seat).settings().mode == mode


def test_the_old_switch_keeps_weights_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_DISABLE", "1")
    placing = _placing((), TWO)
    settings = placing.settings()
    assert (settings.mode, settings.rows, settings.domains) == ("single", "shard", "shard")
    assert placing.notes == ["FSDP_DISABLE=1: every rank keeps whole weights"]
    placing = _placing(("--parallel_mode", "fsdp"), TWO)
    assert placing.settings().mode == "fsdp"
    assert placing.notes == ["warning: FSDP_DISABLE=1 does not act: parallel.mode = fsdp is set"]
    assert _placing((), None).settings().mode == "single"


def test_domain_parallel_is_sharded_domains() -> None:
    assert _placing(("--domain_parallel",), TWO).settings().domains == "shard"
    alone_ = _placing(("--domain_parallel",), None)
    assert alone_.settings().domains == "shard" and "does not act on one rank" in alone_.notes[0]
    with pytest.raises(ConfigError, match="--domain_parallel: bab.domain_parallel = true contradicts parallel.domains"):
        _placing(("--domain_parallel", "--parallel_domains", "replicate"), TWO).settings()


def test_a_network_that_cannot_be_read_is_the_readers_business() -> None:
    """No rank may be left waiting: the plan falls back, and reading says what is wrong."""
    placing = _placing((), TWO)
    found = placing.decide(ParallelSettings(mode="auto"), alone(Counters()))
    assert found.mode == "single" and "no plan could be made (net.onnx: no such file" in placing.notes[-1]


@pytest.mark.parametrize(
    ("words", "error", "line"),
    [
        (("--parallel_mode", "tp"), "parallel.mode = tp: 2 ranks", "--parallel_mode: parallel.mode = tp: 2 ranks"),
        (("--parallel_mesh", "rows=2"), "parallel.mesh: rows = 2", "--parallel_mesh: parallel.mesh: rows = 2"),
        ((), "parallel.mode = single: 2 ranks", "parallel.mode = single: 2 ranks"),
        ((), "model.path: x", "model.path: x"),
    ],
)
def test_errors_name_where_the_key_was_given(words: tuple[str, ...], error: str, line: str) -> None:
    assert str(placed(_loaded(*words), ConfigError(error))) == line


def test_the_section_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    text: Mapping[str, str] = {
        "mode: fast": "mode", "rows: 3": "rows", "mesh: {ranks: 2}": "mesh", "mesh: {rows: 0}": "mesh",
        "tile_rows: 0": "tile_rows", "block_mib: -1": "block_mib", "timeout_s: 0": "timeout_s", "nodes: 2": "nodes",
        "threads: none": "threads", "tp_intermediate: x": "tp_int", "prefetch: 2": "prefetch",
        "backend: mpi": "backend", "domains: all": "domains",
    }  # fmt: skip
    for line, key in text.items():
        file.write_text(f"parallel:\n  {line}\n")
        with pytest.raises(ConfigError) as found:
            load_config(["--config", str(file)])
        assert str(file) in str(found.value) and f"parallel.{key}" in str(found.value), line
