"""What a list or data set asks of the processes of its instances, and what they answer when they fail."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from complete_verifier.config import LoadedConfig

if TYPE_CHECKING:
    from complete_verifier.driver.examples import Examples


@dataclass(frozen=True, slots=True)
class Shared:
    """What all processes of a run have. ``examples``: where questions come from, if not from the instances' files."""

    loaded: LoadedConfig
    examples: Examples | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """Is there the device and the mode that the settings ask for?"""


@dataclass(frozen=True, slots=True)
class RunInstance:
    """Decide an instance. ``started``: the monotonic time that its limit counts from."""

    index: int
    network: Path
    specification: Path
    started: float
    timeout_s: float


Work = Probe | RunInstance


@dataclass(frozen=True, slots=True)
class Failure:
    """No verdict: one line that says why, and the exit code for it."""

    message: str
    code: int
