"""Do all ranks read the same? Several machines may hold different files under one name, and bounds would mix nets.

What user code loads or a program hands over is not read from a file that could be compared: then the property and the
network's numbers themselves are.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from auto_LiRPA.errors import WorkerFailed
from auto_LiRPA.parallel.context import DistributedContext
from complete_verifier.config import LoadedConfig
from complete_verifier.config.options import option_table
from complete_verifier.config.yaml_file import yaml_text
from complete_verifier.driver.instances import Instance
from complete_verifier.spec.property import Property

# Where files lie may differ from machine to machine; what is in them may not.
_PLACES = frozenset(
    {
        "general.root_path", "general.results_file", "general.output_file", "general.csv_name", "model.onnx_path",
        "model.path", "specification.vnnlib_path", "attack.cex_path", "data.pkl_path", "data.data_idx_file",
        "debug.save_minimal_config",
    }
)  # fmt: skip
# A larger file is compared in pieces spread over it: every rank reads its own blocks of it only.
_UNREAD = "unread"
_WHOLE, _PIECES, _PIECE = 2**28, 64, 2**20


def check_same_input(context: DistributedContext, loaded: LoadedConfig, instance: Instance) -> None:
    """Compare settings and files over all ranks.

    Raises:
        WorkerFailed: some rank has others than rank 0; every rank raises it.
    """
    if context.world_size == 1:
        return
    context.at("comparing its input with rank 0's")
    mine = (_settings(loaded), _files(loaded, instance))
    first, *others = context.world.objects(mine)
    for rank, theirs in enumerate(others, 1):
        for what, one, other in (("setting", first[0], theirs[0]), ("file", first[1], theirs[1])):
            for name in sorted({*one, *other}):
                if one.get(name) != other.get(name) and _UNREAD not in (one.get(name), other.get(name)):
                    raise WorkerFailed(_line(context.world_size, rank, what, name, one, other))


def check_same_question(context: DistributedContext, prop: Property, network: nn.Module | Iterable[Tensor]) -> None:
    """Compare what user code or a program gave every rank: the property, and all numbers of the network.

    Raises:
        WorkerFailed: some rank has others than rank 0; every rank raises it.
    """
    if context.world_size == 1:
        return
    context.at("comparing its input with rank 0's")
    tensors = network.state_dict().values() if isinstance(network, nn.Module) else network
    mine = {"the property": f"{zlib.crc32(repr(prop.regions).encode()):08x}", "the network": _numbers(tensors)}
    first, *others = context.world.objects(mine)
    for rank, theirs in enumerate(others, 1):
        for what, value in theirs.items():
            if value != first[what]:
                raise WorkerFailed(_line(context.world_size, rank, "question", what, first, theirs))


def _numbers(values: Iterable[object]) -> str:
    """Shapes, types and a checksum of the content; what else a module's state may hold is passed over."""
    text, crc = "", 0
    for tensor in values:
        if not isinstance(tensor, Tensor):
            continue
        text += f"{tuple(tensor.shape)}{tensor.dtype} "
        flat = tensor.detach().reshape(-1)
        for piece in flat.split(_PIECE) if flat.numel() else ():
            crc = zlib.crc32(piece.cpu().contiguous().view(torch.uint8).numpy(), crc)
    return f"{text}{crc:08x}"


def _line(size: int, rank: int, what: str, name: str, one: Mapping[str, str], other: Mapping[str, str]) -> str:
    who = f"rank {rank} of {size}"
    step = "its last step: comparing its input with rank 0's"
    if what == "question":
        return f"{who} asks another question than rank 0: {name} differs; give all ranks the same (seed what is random)"
    if what == "file":
        return f"{who} reads another file than rank 0: {name} differs; give all ranks the same; {step}"
    values = [side.get(name, "its default") for side in (other, one)]
    return f"{who} runs with {name} = {values[0]}, rank 0 with {values[1]}; give all ranks the same; {step}"


def _settings(loaded: LoadedConfig) -> dict[str, str]:
    values = {path: (option, option.of(loaded.config)) for path, option in option_table().items()}
    return {
        path: yaml_text(value)
        for path, (option, value) in values.items()
        if path not in _PLACES and value != option.default
    }


def _files(loaded: LoadedConfig, instance: Instance) -> dict[str, str]:
    config = loaded.config
    named: Iterable[tuple[str, Path | None]] = (
        ("the network (model.onnx_path)", instance.network),
        ("the property (specification.vnnlib_path)", instance.specification),
        ("the weights (model.path)", None if config.model.path is None else Path(config.model.path)),
        ("the examples (data.pkl_path)", None if config.data.pkl_path is None else Path(config.data.pkl_path)),
    )
    return {what: _digest(path) for what, path in named if path is not None}


def _digest(path: Path) -> str:
    """Size and checksum. What cannot be read is left to the reader of that rank, whose message is better."""
    try:
        size, crc = path.stat().st_size, 0
        whole = size <= _WHOLE
        with path.open("rb") as file:
            for start in range(0, size, _PIECE) if whole else range(0, size, size // _PIECES):
                file.seek(start)
                crc = zlib.crc32(file.read(_PIECE), crc)
    except OSError:
        return _UNREAD
    return f"{size} {crc:08x}"
