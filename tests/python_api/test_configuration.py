"""Settings from Python: the YAML's keys, checked at once; defaults are the command line's but for `auto`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from abcrown import ConfigBuilder, default_config
from abcrown.solver import loaded_settings
from auto_LiRPA.errors import ConfigError
from complete_verifier.config import load_config
from complete_verifier.config.options import option_table


def test_defaults_are_the_command_lines() -> None:
    config = default_config()
    assert config["general"]["complete_verifier"] == "auto"
    assert config["general"]["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    plain, ours = load_config([]).config, ConfigBuilder.from_defaults().loaded().config
    differing = [path for path, option in option_table().items() if option.of(plain) != option.of(ours)]
    assert differing == ["general.complete_verifier"]
    assert yaml.safe_load(yaml.safe_dump(config)) == config  # plain values only


def test_set_update_and_call() -> None:
    builder = ConfigBuilder.from_defaults().set(general__device="cpu", solver__beta_crown__iteration=7)
    assert builder.update({"bab": {"timeout": 12, "branching": {"method": "babsr"}}}) is builder
    config = builder()
    assert config == builder.to_dict()
    assert config["solver"]["beta-crown"]["iteration"] == 7
    assert (config["bab"]["timeout"], config["bab"]["branching"]["method"]) == (12, "babsr")
    assert builder.set(bab__timeout=option_table()["bab.timeout"].default).to_dict()["bab"]["timeout"] == 360
    assert config["bab"]["timeout"] == 12  # a copy


@pytest.mark.parametrize("through", ["builder", "dictionary"])
def test_settings_come_out_as_they_went_in(through: str) -> None:
    builder = ConfigBuilder.from_defaults().set(bab__timeout=3, general__device="cpu", general__complete_verifier="bab")
    copy = ConfigBuilder.from_config(builder if through == "builder" else builder())
    assert copy() == builder()
    copy.set(bab__timeout=4)
    assert builder()["bab"]["timeout"] == 3
    loaded = loaded_settings(builder())
    assert loaded.config == builder.loaded().config
    # what merely is the default was not asked for: it does not come with warnings
    assert not loaded.is_set("solver.batch_size") and loaded.is_set("bab.timeout") and loaded.is_set("general.device")


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("solver:\n  alpha-crown: {iteration: 3}\nattack: {pgd_order: skip}\n")
    config = ConfigBuilder.from_yaml(path).to_dict()
    assert config["solver"]["alpha-crown"]["iteration"] == 3 and config["attack"]["pgd_order"] == "skip"
    assert config["general"]["complete_verifier"] == "auto"
    path.write_text("general: {complete_verifier: skip, device: cpu}\n")
    assert ConfigBuilder.from_yaml(str(path))()["general"]["complete_verifier"] == "skip"
    assert loaded_settings(path).config_dir == tmp_path
    assert ConfigBuilder.from_config(ConfigBuilder.from_yaml(path)).loaded().config_dir == tmp_path


FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "unknown key": (lambda: ConfigBuilder().set(general__devcie="cpu"), "general.devcie: unknown key; perhaps general"),
    "wrong value": (lambda: ConfigBuilder().set(bab__timeout="soon"), 'bab.timeout = "soon": expected a number'),
    "a section as a value": (lambda: ConfigBuilder().set(bab=3), "bab = 3: expected a section"),
    "a value as a section": (lambda: ConfigBuilder().set(general__device__name=3), "general.device = "),
    "no mapping": (lambda: ConfigBuilder().update(3), "expected a mapping"),  # type: ignore[arg-type]
    "unknown section": (lambda: ConfigBuilder.from_config({"genral": {}}), "genral: unknown key"),
    "no file": (lambda: ConfigBuilder.from_yaml("nowhere.yaml"), "nowhere.yaml: no such file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_line(name: str) -> None:
    act, message = FAULTS[name]
    with pytest.raises(ConfigError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_a_refused_value_leaves_the_builder_as_it_was() -> None:
    builder = ConfigBuilder().set(bab__timeout=5)
    before = builder()
    with pytest.raises(ConfigError):
        builder.set(bab__timeout=6, bab__max_domains="x")
    assert builder() == before
