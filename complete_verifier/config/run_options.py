"""Options of one invocation that no YAML file can give."""

from __future__ import annotations

from typing import Annotated, Literal

from complete_verifier.config.kinds import Bool, Kind, OptCount, OptNatural, OptPositive, OptText
from complete_verifier.config.readers import WrongValueError, read_float, read_int
from complete_verifier.config.schema_base import Section, option


def _read_count(raw: object) -> int:
    number = read_int(raw)
    if number < 1:
        raise WrongValueError
    return number


def _read_nproc(raw: object) -> int | str:
    return "gpu" if raw == "gpu" else _read_count(raw)


def _read_percentage(raw: object) -> float:
    percentage = read_float(raw)
    if not 0 < percentage <= 100:
        raise WrongValueError
    return percentage


_PERCENTAGE = Kind("a number > 0 and <= 100", _read_percentage, nullable=True)
_AT_LEAST_1 = Kind("an integer >= 1", _read_count)
_NPROC = Kind("gpu or an integer >= 1", _read_nproc, nullable=True)


class RunOptions(Section):
    """Options of one invocation."""

    stats_file: OptText = option(None, "--stats_file", "File that receives the run's statistics as JSON.")
    plan: Bool = option(False, "--plan", "Print predicted memory and traffic for each parallel mode and stop.")
    world_size: OptCount = option(None, "--world_size", "Ranks that --plan assumes.")
    gpu_mem_gib: OptPositive = option(None, "--gpu_mem_gib", "Memory of one GPU in GiB that --plan assumes.")
    undecided: Annotated[float | None, _PERCENTAGE] = option(
        None, "--undecided", "Percentage of the neurons that --plan takes to be undecided; 50 if nothing is said."
    )
    plan_json: OptText = option(None, "--plan_json", "File that receives the plan as JSON.")
    debug: Bool = option(False, "--debug", "Show tracebacks and check internal promises.")
    quiet: Bool = option(False, "--quiet", "Print the result only.")
    print_config: Bool = option(False, "--print_config", "Print all settings with their origins and stop.")
    nproc: Annotated[int | Literal["gpu"] | None, _NPROC] = option(
        None, "--nproc", "Start this many ranks on this machine; gpu starts one per GPU."
    )
    nnodes: Annotated[int, _AT_LEAST_1] = option(1, "--nnodes", "Machines that start ranks; --nproc of each is equal.")
    node_rank: OptNatural = option(None, "--node_rank", "Number of this machine, from 0; machine 0 holds rank 0.")
    master_addr: OptText = option(None, "--master_addr", "Address of machine 0, where the others find it.")
    master_port: OptCount = option(None, "--master_port", "Port on machine 0 that is free; 29500 if several machines.")
    max_restarts: OptNatural = option(
        None, "--max_restarts", "How often ranks are started anew after one was lost (docs/parallel_launching.md)."
    )
    checkpoint: OptText = option(None, "--checkpoint", "Folder for checkpoints of the search (docs/checkpoints.md).")
    resume: OptText = option(None, "--resume", "Folder with a checkpoint to go on from; it receives the next ones too.")
