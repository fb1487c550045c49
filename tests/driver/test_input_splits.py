"""From the configuration to input splitting: what `auto` chooses, what is said, and runs of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from complete_verifier.config import Config, load_mapping
from complete_verifier.driver.input_splits import input_bab_settings, notes, resolved, splits_inputs
from tests.end_to_end.runs import Hard, run


def config(**sections: object) -> Config:
    return load_mapping(sections).config


def split(**values: object) -> dict[str, object]:
    return {"branching": {"method": "sb", "input_split": {"enable": True, **values}}}


@pytest.mark.parametrize(("inputs", "few"), [(20, True), (21, False)])
def test_auto_splits_few_inputs(inputs: int, few: bool) -> None:
    """Then by sb over CROWN bounds; otherwise neurons, by what the configuration says."""
    found = resolved(config(general={"complete_verifier": "auto"}, bab=split()), inputs)
    assert found.general.complete_verifier == "bab" and splits_inputs(found) is few
    assert found.solver.bound_prop_method == ("crown" if few else "alpha-crown")
    plain = resolved(config(general={"complete_verifier": "auto"}), inputs)
    assert plain.bab.branching.method == ("sb" if few else "kfsb")


def test_only_auto_chooses() -> None:
    given = config()
    assert resolved(given, 2) is given and not splits_inputs(given)


def test_what_is_said() -> None:
    assert notes(config()) == [] and notes(config(bab=split())) == []
    (line,) = notes(config(bab={"branching": {"input_split": {"enable": True}}}))
    assert "kfsb" in line and "sb" in line
    (line,) = notes(config(bab={"branching": {"method": "naive"}}))
    assert "naive" in line and "kfsb" in line
    (line,) = notes(config(attack={"pgd_order": "input_bab"}))
    assert "input_bab" in line


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("crown", "crown"),
        ("init-crown", "crown"),
        ("alpha-crown", "alpha-crown"),
        ("forward+crown", "forward+crown"),
        ("forward", "forward"),
        ("ibp", "ibp"),
        ("crown-ibp", "crown-ibp"),
    ],
)
def test_bound_methods(method: str, expected: str) -> None:
    assert input_bab_settings(config(solver={"bound_prop_method": method})).bound_method == expected


def test_settings_follow_the_configuration() -> None:
    clip = {"enabled": True, "clip_type": "complete", "clip_iterations": 2}
    found = input_bab_settings(
        config(
            solver={"batch_size": 7, "min_batch_size_ratio": 0.5},
            bab=split(split_hint=[1.0, 2.0], split_partitions=3, adv_check=-1, sb_sum=True, reorder_bab=True)
            | {"clip_n_verify": {"clip_input_domain": clip}},
            attack={"pgd_order": "after", "input_split_check_adv": {"max_num_domains": 3}},
        )
    )
    assert (found.batch_size, found.min_batch_ratio, found.partitions, found.hint) == (7, 0.5, 3, (1.0, 2.0))
    assert found.score.sum_rows and found.reorder and found.first_attack
    assert found.clip.enabled and found.clip.complete and found.clip.iterations == 2
    assert found.check.from_visited == float("inf") and found.check.boxes == 3 and found.check.enabled
    skip = input_bab_settings(config(attack={"pgd_order": "skip"}))
    assert not skip.check.enabled and not skip.first_attack
    forced = input_bab_settings(config(attack={"pgd_order": "skip", "input_split_check_adv": {"enabled": True}}))
    assert forced.check.enabled


HARD = Hard.make([3, 12, 12, 2], 3)
SPLIT = ("--enable_input_split", "--branching_method", "sb", "--bound_prop_method", "crown", "--batch_size", "64")


@pytest.mark.parametrize(
    "flags",
    [
        SPLIT,
        (*SPLIT, "--enable_clip_input", "--reorder_bab"),
        (*SPLIT, "--bound_prop_method", "alpha-crown", "--enable_clip_input", "--clip_input_type", "complete"),
        ("--complete_verifier", "auto"),
        ("--enable_input_split",),
    ],
)
@pytest.mark.parametrize(("margin", "verdict"), [(-0.02, "unsat"), (0.02, "sat")])
def test_runs_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], margin: float, verdict: str
) -> None:
    """Thresholds to both sides of the exact optimum; attacks happen within the search only."""
    done = run(capsys, tmp_path, HARD.write(tmp_path, margin), *flags, "--pgd_order", "input_bab", "--timeout", "60")
    assert (done.code, done.word) == (0, verdict), done.err
    assert "BaB round" in done.out or verdict == "sat"
    if verdict == "sat":
        assert "verified_status unsafe-bab" in done.out and done.results is not None and "X_0" in done.results
