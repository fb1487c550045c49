"""Options of one invocation that no YAML file can give."""

from __future__ import annotations

from typing import Annotated, Literal

from complete_verifier.config.kinds import Bool, Kind, OptCount, OptPositive, OptText
from complete_verifier.config.readers import WrongValueError, read_int
from complete_verifier.config.schema_base import Section, option


def _read_nproc(raw: object) -> int | str:
    if raw == "gpu":
        return "gpu"
    number = read_int(raw)
    if number < 1:
        raise WrongValueError
    return number


_NPROC = Kind("gpu or an integer >= 1", _read_nproc, nullable=True)


class RunOptions(Section):
    """Options of one invocation."""

    stats_file: OptText = option(None, "--stats_file", "File that receives the run's statistics as JSON.")
    plan: Bool = option(False, "--plan", "Print predicted memory and traffic for each parallel mode and stop.")
    world_size: OptCount = option(None, "--world_size", "Ranks that --plan assumes.")
    gpu_mem_gib: OptPositive = option(None, "--gpu_mem_gib", "Memory of one GPU in GiB that --plan assumes.")
    debug: Bool = option(False, "--debug", "Show tracebacks and check internal promises.")
    quiet: Bool = option(False, "--quiet", "Print the result only.")
    print_config: Bool = option(False, "--print_config", "Print all settings with their origins and stop.")
    nproc: Annotated[int | Literal["gpu"] | None, _NPROC] = option(
        None, "--nproc", "Start this many ranks on this machine; gpu starts one per GPU."
    )
    checkpoint: OptText = option(None, "--checkpoint", "Folder for checkpoints of the search (docs/checkpoints.md).")
    resume: OptText = option(None, "--resume", "Folder with a checkpoint to go on from; it receives the next ones too.")
