"""How long an instance may take."""

from __future__ import annotations

from complete_verifier.config import Config


def timeout_seconds(config: Config, of_the_list: float | None) -> float:
    """The limit of one instance; ``of_the_list``: the third column of its row, if there is one."""
    if config.bab.override_timeout is not None:
        return config.bab.override_timeout
    return (config.bab.timeout if of_the_list is None else of_the_list) * config.bab.timeout_scale
