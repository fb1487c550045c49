"""Printed settings: complete, loadable, and each with its origin."""

from __future__ import annotations

from pathlib import Path

import yaml

from complete_verifier.config import Config, load_config, render_config, to_yaml
from complete_verifier.config.options import option_table

ROOT = Path(__file__).resolve().parents[2]


def test_every_value_is_printed_with_its_origin(tmp_path: Path) -> None:
    file = tmp_path / "F.yaml"
    file.write_text("solver: {alpha-crown: {iteration: 7}}\nspecification: {shrink_eps: '1e-10'}\n")
    loaded = load_config(["--config", str(file), "--batch_size", "8", "--set", "bab.timeout=5"])
    text = render_config(loaded)
    lines = {line.strip() for line in text.splitlines()}
    assert f"# resolved settings; read from {file}" in lines
    printed = {" ".join(line.split()) for line in lines}
    assert f"iteration: 7 # {file}" in printed
    assert f"shrink_eps: 1.0e-10 # {file}" in printed
    assert "batch_size: 8 # --batch_size" in printed
    assert "timeout: 5.0 # --set" in printed
    assert "seed: 100 # default" in printed
    assert sum("#" in line for line in text.splitlines()) == len(option_table()) + 1
    again = tmp_path / "G.yaml"
    again.write_text(text)
    assert load_config(["--config", str(again)]).config == loaded.config


def test_only_what_differs() -> None:
    loaded = load_config(["--batch_size", "8", "--seed", "100", "--mean", "0.5", "--parallel_mesh", "domains=2"])
    assert yaml.safe_load(to_yaml(loaded.config, only_non_default=True)) == {
        "data": {"mean": [0.5]},
        "solver": {"batch_size": 8},
        "parallel": {"mesh": {"weights": 1, "rows": 1, "domains": 2}},
    }
    assert to_yaml(Config(), only_non_default=True) == ""


def test_the_default_file_is_the_default() -> None:
    loaded = load_config(["--config", str(ROOT / "configs" / "defaults.yaml")])
    assert loaded.config == Config()
    assert all(loaded.is_set(path) for path in option_table())


def test_awkward_text_survives(tmp_path: Path) -> None:
    for text in (
        "1e-10",
        "true",
        "null x",
        "a: b",
        "# no comment",
        "ä 'quoted' \"twice\"",
        "x" * 300,
        " blank ",
        "-",
        "1",
    ):
        config = load_config(["--results_file", text]).config
        (tmp_path / "F.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert load_config(["--config", str(tmp_path / "F.yaml")]).config.general.results_file == text
