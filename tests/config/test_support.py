"""Options that do not act: a warning where they only steer the search, an error where they change the question."""

from __future__ import annotations

from pathlib import Path

import pytest

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import check_supported, load_config, load_mapping
from complete_verifier.config.options import option_table, section_paths
from complete_verifier.config.run_options import RunOptions
from complete_verifier.config.support import support_of
from complete_verifier.config.support_table import SUPPORT, Status
from tests.config.samples import sample_of, upstream_keys

UPSTREAM = upstream_keys()
# Sections and options that change what is asked: they act or are refused, never passed over.
QUESTION = ("model.", "data.", "specification.", "parallel.")
QUESTION_OPTIONS = {
    "bab.decision_thresh",
    "bab.domain_parallel",
    "bab.branching.input_split.update_rhs_with_attack",
    "bab.branching.input_split.presplit_domains",
    "debug.rescale_vnnlib_ptb",
    "debug.sanity_check",
    "general.adhoc_tuning",
    "general.graph_optimizer",
    "attack.adv_saver",
    "attack.adv_verifier",
    "attack.pgd_loss",
    "attack.attack_func",
    "attack.attack_tolerance",
}
# Within those sections, options that only say how a file is read or what is cached.
HARMLESS = {"model.cache_onnx_conversion", "model.debug_onnx", "model.check_optimized"}


def test_the_table_speaks_for_every_option_and_nothing_else() -> None:
    flags = {option.flag for option in option_table(RunOptions).values()}
    assert set(SUPPORT) <= set(option_table()) | section_paths() | flags
    for key in (*option_table(), *flags):
        support = support_of(key)
        assert support.status is Status.ACTS or support.reason, key


def test_no_option_that_changes_the_question_is_passed_over() -> None:
    for path in option_table():
        changes = path.startswith(QUESTION) or path in QUESTION_OPTIONS
        if changes and path not in HARMLESS:
            assert support_of(path).status is not Status.STEERS, path


@pytest.mark.parametrize("path", option_table())
def test_each_status_does_what_it_says(path: str) -> None:
    option, support = option_table()[path], support_of(path)
    raw = sample_of(option, UPSTREAM.get(path)).yaml
    loaded = load_mapping({}).with_values({path: raw}, "F.yaml")
    value = option.of(loaded.config)
    values = value if isinstance(value, tuple) else (value,)
    hook = isinstance(value, str) and value.startswith("Customized") and not support.hooks
    assert value != option.default
    if not hook and (support.status is Status.ACTS or all(each in support.acting for each in values)):
        assert check_supported(loaded) == []
    elif support.status is Status.STEERS and not hook:
        (warning,) = check_supported(loaded)
        assert warning.startswith(f"F.yaml: {path} = ") and support.reason in warning and "\n" not in warning
    else:
        with pytest.raises(ConfigError, match=r"^F\.yaml: ") as caught:
            check_supported(loaded)
        assert f"{path} = " in str(caught.value) and "\n" not in str(caught.value)


def test_defaults_are_silent() -> None:
    assert check_supported(load_config([])) == []


def test_a_default_that_is_replaced_is_said_when_it_was_asked_for() -> None:
    replaced = [path for path, support in SUPPORT.items() if support.even_default]
    for path in replaced:
        option = option_table()[path]
        warnings = check_supported(load_config([option.flag, str(option.default)]))
        assert len(warnings) == 1 and f"{option.flag}: {path} = {option.default}" in warnings[0]


def test_all_refused_options_are_named_in_one_line(tmp_path: Path) -> None:
    refused = [path for path in option_table() if support_of(path).status is Status.REFUSED][:3]
    samples = {path: sample_of(option_table()[path], UPSTREAM.get(path)).yaml for path in refused}
    loaded = load_mapping({}).with_values(samples, "F.yaml")
    with pytest.raises(ConfigError) as caught:
        check_supported(loaded)
    assert all(path in str(caught.value) for path in refused) and "\n" not in str(caught.value)


def test_user_code_is_refused_wherever_no_hook_acts() -> None:
    hook = 'Customized("a.py", "f")'
    if not support_of("general.complete_verifier").hooks:
        with pytest.raises(ConfigError, match="user code"):
            check_supported(load_config(["--complete_verifier", hook]))


def test_run_options_follow_the_same_rule() -> None:
    for option in option_table(RunOptions).values():
        words = [option.flag] if option.sets is not None else [option.flag, "2"]
        if option.flag in ("--world_size", "--gpu_mem_gib", "--undecided", "--plan_json"):
            words.append("--plan")
        flags = {word for word in words if word.startswith("--")}
        if any(support_of(flag).status is Status.REFUSED for flag in flags):
            with pytest.raises(ConfigError, match="not supported"):
                check_supported(load_config(words))
        else:
            check_supported(load_config(words))
