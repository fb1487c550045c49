"""The context of a run: device, threads and placement from the configuration."""

from __future__ import annotations

from auto_LiRPA.parallel.context import DistributedContext
from complete_verifier.config import LoadedConfig
from complete_verifier.driver.choices import choose_device


def make_context(loaded: LoadedConfig) -> tuple[DistributedContext, str | None]:
    """One rank's context, and a line for the user where its device is not the default.

    Raises:
        ConfigError: a device, a mode or a number of ranks that is not available.
    """
    device, note = choose_device(loaded)
    return DistributedContext.from_env(loaded.config.parallel.settings(), device), note
