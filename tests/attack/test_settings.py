"""Settings are refused at the door, in one line that names the key."""

from __future__ import annotations

import pytest

from auto_LiRPA.errors import ConfigError
from complete_verifier.attack.settings import AttackSettings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", -1),
        ("restarts", -1),
        ("batch_size", 0),
        ("batch_bytes", 0),
        ("seed", -1),
        ("lr_decay", float("nan")),
        ("tolerance", -0.1),
        ("tolerance", float("inf")),
        ("alpha", 0.0),
        ("alpha", -1.0),
        ("alpha", float("nan")),
        ("alpha", "big"),
    ],
)
def test_senseless_values_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        AttackSettings(**{key: value})  # type: ignore[arg-type]
    assert key in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("mode", "diversified", "gama"),
    [
        ("PGD", False, False),
        ("diversed_PGD", True, False),
        ("diversed_GAMA_PGD", True, True),
        ("diverse_pgd", False, False),  # upstream looks for parts of the word
        ("boundary", False, False),
    ],
)
def test_mode_is_read_by_parts_of_the_word(mode: str, diversified: bool, gama: bool) -> None:
    settings = AttackSettings(mode=mode)
    assert (settings.diversified, settings.gama) == (diversified, gama)
