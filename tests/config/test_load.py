"""Loading: precedence, every option by flag, by file and by path, abbreviations, and what follows from what."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import LoadedConfig, load_config, load_mapping, to_yaml
from complete_verifier.config.options import option_table
from tests.config.samples import Sample, sample_of, upstream_keys

UPSTREAM = upstream_keys()
# Options that change others: an L2 ball switches the attack off.
FOLLOWERS = {"specification.norm": {"attack.pgd_order"}}


def _case(path: str) -> Sample:
    return sample_of(option_table()[path], UPSTREAM.get(path))


def _only(loaded: LoadedConfig, path: str, value: object, origin: str) -> None:
    """`path` has the value and the origin, everything else is untouched."""
    assert option_table()[path].of(loaded.config) == value
    assert type(option_table()[path].of(loaded.config)) is type(value)
    assert loaded.origins[path] == origin
    assert loaded.is_set(path)
    for other, option in option_table().items():
        if other != path and other not in FOLLOWERS.get(path, set()):
            assert option.of(loaded.config) == option.default, other
            assert loaded.origins[other] == "default", other


def _write(path: Path, option_path: str, value: object) -> Path:
    nested: object = value
    for name in reversed(option_path.split(".")):
        nested = {name: nested}
    path.write_text(yaml.safe_dump(nested))
    return path


@pytest.mark.parametrize("path", option_table())
def test_every_option_by_its_flag(path: str, tmp_path: Path) -> None:
    sample = _case(path)
    assert sample.value != option_table()[path].default
    option = option_table()[path]
    flag = option.off_flag if option.off_flag and option.sets is option.default else option.flag
    if path == "general.root_path":  # this flag also names the folder of a configuration file
        (tmp_path / "config.yaml").write_text("")
        sample = Sample((str(tmp_path),), str(tmp_path), str(tmp_path))
    _only(load_config([flag, *sample.words]), path, sample.value, flag)


@pytest.mark.parametrize("path", option_table())
def test_every_option_by_file_and_by_path(path: str, tmp_path: Path) -> None:
    sample = _case(path)
    file = _write(tmp_path / "F.yaml", path, sample.yaml)
    _only(load_config(["--config", str(file)]), path, sample.value, str(file))
    text = yaml.safe_dump(sample.yaml, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
    _only(load_config(["--set", f"{path}={text}"]), path, sample.value, "--set")


def test_all_options_at_once_survive_being_written_and_read(tmp_path: Path) -> None:
    values = {path: _case(path).yaml for path in option_table() if path not in FOLLOWERS}
    loaded = load_mapping({}).with_values(values, "test")
    (tmp_path / "F.yaml").write_text(to_yaml(loaded.config))
    assert load_config(["--config", str(tmp_path / "F.yaml")]).config == loaded.config
    (tmp_path / "G.yaml").write_text(to_yaml(loaded.config, only_non_default=True))
    assert load_config(["--config", str(tmp_path / "G.yaml")]).config == loaded.config


def test_precedence_is_flag_then_file_then_default(tmp_path: Path) -> None:
    file = tmp_path / "F.yaml"
    file.write_text("solver:\n  batch_size: 128\n  beta-crown: {iteration: 7, lr_beta: 0.5}\n")
    loaded = load_config(["--config", str(file), "--iteration", "9", "--set", "solver.beta-crown.lr_beta=0.25"])
    assert (loaded.config.solver.batch_size, loaded.config.solver.beta_crown.iteration) == (128, 9)
    assert loaded.config.solver.beta_crown.lr_beta == 0.25
    assert loaded.config.solver.beta_crown.lr_alpha == 0.01
    wanted = {"solver.batch_size": str(file), "solver.beta-crown.iteration": "--iteration"}
    wanted |= {"solver.beta-crown.lr_beta": "--set", "solver.beta-crown.lr_alpha": "default"}
    assert {path: loaded.origins[path] for path in wanted} == wanted


def test_a_given_default_counts_as_given() -> None:
    loaded = load_config(["--device", "cuda"])
    assert loaded.is_set("general.device") and not loaded.is_set("general.seed")


def test_a_switch_can_be_turned_back_by_path(tmp_path: Path) -> None:
    (tmp_path / "F.yaml").write_text("general: {sparse_alpha: false, double_fp: true}")
    arguments = ["--config", str(tmp_path / "F.yaml"), "--set", "general.sparse_alpha=true"]
    config = load_config([*arguments, "--set", "general.double_fp=no"]).config
    assert config.general.sparse_alpha and not config.general.double_fp
    assert load_config(["--no_compare_crown_with_ibp"]).config.solver.crown.compare_crown_with_ibp is False
    assert load_config(["--compare_crown_with_ibp"]).config.solver.crown.compare_crown_with_ibp is True


def test_flags_may_be_abbreviated_and_take_equal_signs() -> None:
    loaded = load_config(["--bound_prop", "crown", "--results=a.txt", "--verify_onnx"])
    assert loaded.config.solver.bound_prop_method == "crown"
    assert loaded.config.general.results_file == "a.txt"
    assert loaded.config.general.verify_onnxruntime_output
    assert loaded.origins["solver.bound_prop_method"] == "--bound_prop_method"


def test_new_flags_do_not_make_upstreams_abbreviations_ambiguous() -> None:
    assert load_config(["--check_opt"]).config.model.check_optimized
    assert load_config(["--no_compare"]).config.bab.branching.input_split.compare_with_old_bounds is False


def test_signed_numbers_are_values() -> None:
    loaded = load_config(["--rhs_offset", "-1e-3", "--mean", "-1", "-.5", "--sb_margin_weight", "-inf"])
    assert loaded.config.specification.rhs_offset == -0.001
    assert loaded.config.data.mean == (-1.0, -0.5)
    assert loaded.config.bab.branching.input_split.sb_margin_weight == float("-inf")


def test_list_flags_may_be_empty() -> None:
    loaded = load_config(["--bound_prop_method", "crown", "--apply_output_constraints_to"])
    assert loaded.config.solver.invprop.apply_output_constraints_to == ()
    assert loaded.is_set("solver.invprop.apply_output_constraints_to")


def test_the_last_of_equal_flags_counts() -> None:
    assert load_config(["--timeout", "3", "--timeout", "4"]).config.bab.timeout == 4


def test_root_path_alone_names_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("bab: {timeout: 17}")
    loaded = load_config(["--root_path", str(tmp_path)])
    assert loaded.config.bab.timeout == 17
    assert loaded.config.general.root_path == str(tmp_path)
    assert loaded.config_file == tmp_path / "config.yaml"


def test_config_path_stands_for_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "F.yaml").write_text("general: {root_path: $CONFIG_PATH/nets}")
    loaded = load_config(["--config", str(tmp_path / "F.yaml")])
    assert loaded.config.general.root_path == f"{tmp_path}/nets"
    assert loaded.origins["general.root_path"] == str(tmp_path / "F.yaml")
    with pytest.raises(ConfigError, match="needs a configuration file"):
        load_mapping({"general": {"root_path": "$CONFIG_PATH"}})


def test_a_norm_other_than_infinity_switches_the_attack_off_and_says_so() -> None:
    loaded = load_config(["--norm", "2"])
    assert loaded.config.attack.pgd_order == "skip"
    assert loaded.origins["attack.pgd_order"] == "specification.norm"
    assert any("attack.pgd_order = skip" in note for note in loaded.notes)
    assert load_config(["--norm", "2", "--pgd_order", "skip"]).notes == ()
    assert load_config(["--norm", "inf"]).config.attack.pgd_order == "before"


def test_empty_files_and_sections_mean_defaults(tmp_path: Path) -> None:
    (tmp_path / "F.yaml").write_text("")
    default = load_config(["--config", str(tmp_path / "F.yaml")]).config
    (tmp_path / "F.yaml").write_text("solver:\nbab:\n  cut:\n")
    assert load_config(["--config", str(tmp_path / "F.yaml")]).config == default
    assert load_config([]).config == default


def test_yaml_anchors_and_merges_work(tmp_path: Path) -> None:
    text = "solver: &s\n  batch_size: 4\nattack:\n  input_split: &a {pgd_steps: 9}\n  input_split_check_adv: {<<: *a}\n"
    (tmp_path / "F.yaml").write_text(text)
    config = load_config(["--config", str(tmp_path / "F.yaml")]).config
    assert config.attack.input_split_check_adv.pgd_steps == 9


def test_a_section_can_be_set_by_path() -> None:
    loaded = load_config(["--set", "bab.cut={enabled: true, lr: 0.5}"])
    assert loaded.config.bab.cut.enabled and loaded.config.bab.cut.lr == 0.5


def test_options_of_one_run() -> None:
    words = "--stats_file s.json --plan --world_size 64 --gpu_mem_gib 80 --debug --quiet --print_config --nproc 2"
    options = load_config([*words.split(), "--checkpoint", "C", "--resume", "R"]).options
    assert (options.stats_file, options.plan, options.world_size, options.gpu_mem_gib) == ("s.json", True, 64, 80.0)
    assert (options.debug, options.quiet, options.print_config, options.nproc) == (True, True, True, 2)
    assert (options.checkpoint, options.resume) == ("C", "R")
    assert load_config(["--nproc", "gpu"]).options.nproc == "gpu"
    assert load_config([]).options.nproc is None


def test_changed_values_are_a_new_object_with_its_own_origin() -> None:
    loaded = load_config(["--batch_size", "8"])
    changed = loaded.with_values({"bab.timeout": "30", "solver.alpha-crown.iteration": 5}, "list.csv: line 3")
    assert loaded.config.bab.timeout == 360 and changed.config.bab.timeout == 30.0
    assert changed.origins["bab.timeout"] == "list.csv: line 3"
    assert changed.origins["solver.batch_size"] == "--batch_size" and changed.config.solver.batch_size == 8
    assert not changed.is_set("general.seed")
    with pytest.raises(ConfigError, match=r"list.csv: line 3: bab.timeout = \"x\": expected a number > 0"):
        loaded.with_values({"bab.timeout": "x"}, "list.csv: line 3")
    with pytest.raises(ConfigError, match="perhaps bab.timeout"):
        loaded.with_values({"bab.timeot": 3}, "list.csv")
