"""Files of a run: none that is read may be lost, none is written twice; a list that is no table is one line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from complete_verifier.__main__ import main
from tests.end_to_end.runs import COMMON, mlp_model, property_text, write
from tests.nets import dense_layers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Network, property, configuration and list; an old counterexample and link of other names."""
    text = property_text(-np.ones(2), np.ones(2), 1, [[([1.0], -1e6)]])
    write(tmp_path, mlp_model(dense_layers([2, 3, 1], 0)), text)
    (tmp_path / "config.yaml").write_text("general: {device: cpu}\n")
    (tmp_path / "list.csv").write_text("net.onnx,prop.vnnlib,20\n")
    (tmp_path / "list.yaml").write_text("general: {csv_name: list.csv}\n")
    (tmp_path / "old.txt").write_text("sat\nold\n")
    (tmp_path / "link.txt").symlink_to(tmp_path / "net.onnx")
    os.link(tmp_path / "prop.vnnlib", tmp_path / "hard.txt")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def words(folder: Path, names: str) -> list[str]:
    """A command line; ``@`` stands for the folder."""
    return [word.replace("@", f"{folder}/") for word in names.split()] + list(COMMON)


SINGLE = "--config @config.yaml --onnx_path @net.onnx --vnnlib_path @prop.vnnlib"
LIST = "--config @list.yaml --root_path @"
REFUSED = [
    (SINGLE, "--results_file @net.onnx", "a network"),
    (SINGLE, "--results_file @prop.vnnlib", "a property"),
    (SINGLE, "--results_file @config.yaml", "the configuration"),
    (SINGLE, "--results_file @link.txt", "a network"),
    (SINGLE, "--results_file @hard.txt", "a property"),
    (SINGLE, "--results_file @old.txt --stats_file @net.onnx", "a network"),
    (SINGLE, "--results_file @old.txt --stats_file @config.yaml", "the configuration"),
    (SINGLE, "--results_file @old.txt --save_adv_example --cex_path @prop.vnnlib", "a property"),
    (SINGLE, "--results_file @old.txt --stats_file @old.txt", "general.results_file"),
    (SINGLE, "--results_file @old.txt --save_adv_example --cex_path @old.txt", "general.results_file"),
    (SINGLE, "--results_file @old.txt --save_adv_example --cex_path @new --stats_file @new", "--stats_file"),
    (SINGLE, "--results_file @new.txt --stats_file @./new.txt", "general.results_file"),
    (SINGLE, "--results_file @old.txt --set debug.save_minimal_config=@net.onnx", "a network"),
    (LIST, "--results_file @list.csv", "the list"),
    (LIST, "--results_file @list.yaml", "the configuration"),
    (LIST, "--results_file @prop.vnnlib", "a property"),
    (LIST, "--results_file @old.txt --save_output --output_file @net.onnx", "a network"),
    (LIST, "--results_file @old.txt --save_output --output_file @old.txt", "general.results_file"),
    (LIST, "--results_file @old.txt --set debug.save_minimal_config=@prop.vnnlib", "a property"),
]


@pytest.mark.parametrize(("command", "outputs", "named"), REFUSED)
def test_nothing_is_lost(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, outputs: str, named: str
) -> None:
    before = contents(folder)
    assert main(words(folder, f"{command} {outputs}")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{named}" in error and "name another file" in error
    assert contents(folder) == before


def test_other_files_are_written(folder: Path) -> None:
    outputs = "--results_file @old.txt --stats_file @new.json --set debug.save_minimal_config=@new.yaml"
    assert main(words(folder, f"{SINGLE} {outputs} --quiet")) == 0
    assert (folder / "old.txt").read_text() == "unsat"
    assert (folder / "new.json").is_file() and (folder / "new.yaml").is_file()


def test_a_sweep_keeps_its_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "list.csv").rename(folder / "results.csv")
    before = contents(folder)
    assert main(["sweep", "--csv", str(folder / "results.csv"), "--out", str(folder), *COMMON]) == 2
    assert "results.csv: is the list" in capsys.readouterr().err
    assert contents(folder) == before


def test_devices_may_take_everything(folder: Path) -> None:
    assert main(words(folder, f"{SINGLE} --results_file /dev/null --stats_file /dev/null --quiet")) == 0


@pytest.mark.parametrize("start", ["", "net.onnx,prop.vnnlib,20\n", '"'], ids=["first", "second", "quoted"])
def test_a_list_with_an_endless_cell_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], start: str) -> None:
    (folder / "list.csv").write_text(f"{start}net.onnx,{'p' * 200_000},10\n")
    assert main(words(folder, f"{LIST} --results_file @r.csv")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "list.csv: line" in error and len(error) < 300


def test_an_endless_cell_of_results_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out"
    out.mkdir()
    (out / "results.csv").write_text("a" * 200_000 + ",b\n")
    assert main(["sweep", "--csv", str(folder / "list.csv"), "--out", str(out), *COMMON]) == 2
    assert "results.csv: line" in capsys.readouterr().err
