"""Files of named tensors in the safetensors format: written without a second copy in memory, read by mapping."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class Written:
    """What a file must look like to be whole."""

    bytes: int
    crc32: int


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, durable: bool) -> Written:
    """Write host tensors. ``durable``: on the disk, not only on its way there, when this returns.

    The library's own writer copies every tensor into a byte string first; this one hands out views.

    Raises:
        OSError: the file cannot be written.
    """
    # widest numbers first, as the format's readers want it: every tensor is aligned then
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {}
    at = 0
    for name in names:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    crc, size = 0, 0
    with path.open("wb", buffering=0) as file:
        blocks = [memoryview(struct.pack("<Q", len(text)) + text), *(_bytes(tensors[name]) for name in names)]
        for block in blocks:
            crc = zlib.crc32(block, crc)
            size += len(block)
            while len(block):  # an unbuffered write may stop early
                block = block[file.write(block) :]
        if durable:
            os.fsync(file.fileno())
    return Written(size, crc)


def map_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped into memory: pages are read when they are looked at. Not to be written to.

    The file may be unlinked at once; the mapping keeps its content.

    Raises:
        OSError: it cannot be opened. SafetensorError: it is no such file.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def checksum(path: Path) -> Written:
    """Size and checksum of a file as it is.

    Raises:
        OSError: it cannot be read.
    """
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            crc = zlib.crc32(block, crc)
            size += len(block)
    return Written(size, crc)


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel() == 0:
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data
