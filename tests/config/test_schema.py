"""The schema is upstream's 300 options and our own, with their flags, defaults, kinds and choices."""

from __future__ import annotations

import math
import time
from collections import Counter

import pytest
import yaml
from pydantic import ValidationError

from auto_LiRPA.parallel.settings import ParallelSettings
from complete_verifier.config import Config
from complete_verifier.config.flags import build_parser
from complete_verifier.config.options import option_table
from complete_verifier.config.run_options import RunOptions
from tests.config.samples import FREE_TEXT_WITH_CHOICES, UpstreamKey, upstream_keys

UPSTREAM = upstream_keys()
PARALLEL = "mode rows domains mesh backend tile_rows block_mib prefetch tp_intermediate timeout_s threads".split()
OURS = {f"parallel.{name}" for name in PARALLEL} | {"bab.force_synchronous", "bab.domain_parallel", "bab.checkpoint"}
OURS |= {f"bab.refine.{name}" for name in ("enabled", "attempt", "share")}
OUR_DEFAULTS = {"solver.crown.compare_crown_with_ibp": True, "bab.tree_traversal": None}


def test_the_paths_are_upstreams_and_ours() -> None:
    assert len(UPSTREAM) == 300
    assert set(option_table()) == set(UPSTREAM) | OURS
    assert not set(UPSTREAM) & OURS


@pytest.mark.parametrize("key", UPSTREAM.values(), ids=UPSTREAM)
def test_flag_default_and_choices_are_upstreams(key: UpstreamKey) -> None:
    option = option_table()[key.path]
    assert option.flag == key.flag
    default = yaml.safe_load(key.default) if key.default else ""
    default = 1e9 if key.default == "1e9" else 1e8 if key.default == "1e8" else default
    if key.path in OUR_DEFAULTS:
        assert option.default == OUR_DEFAULTS[key.path]
    else:
        assert _listed(option.default) == _listed(default)
    if "," in key.values and key.values != "[str]" and not option.kind.many:
        mine = {*option.kind.choices, *(["None"] if option.kind.nullable else [])}
        allowed = {*key.values.split(", ")} - {"Customized", "true", "false"}
        assert mine - {"None"} == allowed - {"None"}


def _listed(value: object) -> object:
    """Lists by content; upstream writes a bare 0.0 where ours has a list of one."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values[0] if len(values) == 1 else values


def test_every_default_is_a_value_of_its_kind_and_reads_as_itself() -> None:
    for path, option in option_table().items():
        again = option.kind.read(option.default)
        assert again == option.default, path
        assert type(again) is type(option.default), path
        assert option.of(Config()) == option.default, path


def test_every_option_has_a_sentence() -> None:
    for path, option in option_table().items():
        meaning = option.meaning
        assert meaning.endswith(".") and len(meaning.split()) >= 3 and meaning[0].isupper(), path


def test_numbers_have_the_kind_of_number_that_upstream_has() -> None:
    for key in UPSTREAM.values():
        option = option_table()[key.path]
        if key.values in ("int", "float") and option.default is not None and option.default != "":
            assert isinstance(option.default, int if key.values == "int" and key.default != ".inf" else float), key.path


def test_switches_store_the_opposite_of_the_default() -> None:
    switches = [option for option in option_table().values() if option.sets is not None]
    assert len(switches) >= 108
    for option in switches:
        if option.path == "solver.crown.compare_crown_with_ibp":
            assert option.sets is True and option.off_flag == "--no_compare_crown_with_ibp"
        else:
            assert option.sets is not option.default and option.off_flag is None


def test_no_flag_is_used_twice() -> None:
    options = [*option_table().values(), *option_table(RunOptions).values()]
    flags = Counter(flag for option in options for flag in (option.flag, option.off_flag) if flag)
    assert max(flags.values()) == 1
    assert "--config" not in flags and "--set" not in flags


def test_free_text_that_is_checked_here_names_its_choices() -> None:
    for path, word in FREE_TEXT_WITH_CHOICES.items():
        assert word in option_table()[path].kind.choices


def test_a_configuration_cannot_be_changed() -> None:
    config = Config()
    with pytest.raises(ValidationError):
        config.bab.timeout = 3.0
    with pytest.raises(ValidationError):
        Config.model_validate({"solver": {"batch_sice": 3}})
    hash(config)


def test_the_parallel_section_is_the_librarys() -> None:
    assert Config().parallel.settings() == ParallelSettings()
    config = Config.model_validate({"parallel": {"mesh": {"weights": 2}, "tile_rows": 8, "threads": 1}})
    settings = config.parallel.settings()
    assert (settings.tile_rows, settings.threads) == (8, 1)
    assert settings.mesh is not None and settings.mesh["weights"] == 2


def test_the_order_of_exploration_is_unset_by_default() -> None:
    assert Config().bab.tree_traversal is None
    assert Config.model_validate({"bab": {"tree_traversal": "depth_first"}}).bab.tree_traversal == "depth_first"


def test_the_parser_is_built_in_under_50_ms() -> None:
    def once() -> float:
        start = time.process_time()
        build_parser()
        return time.process_time() - start

    assert min(once() for _ in range(5)) < 0.05


def test_infinite_and_unlimited_values_survive() -> None:
    assert Config().bab.max_domains == math.inf
    assert Config().specification.norm == math.inf
