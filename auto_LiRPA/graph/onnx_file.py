"""ONNX files -> ModelProto, plain or gzipped; every way in which a file can be broken is one line."""

from __future__ import annotations

import gzip
import mmap
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from auto_LiRPA.errors import ModelError
from auto_LiRPA.graph.onnx_wire import WireError, cut_weights

if TYPE_CHECKING:
    from onnx import ModelProto


def load_proto(path: Path) -> ModelProto:
    """Parse a file; weights stay where they are until they are used.

    Raises:
        ModelError: missing, unreadable, truncated, or not an ONNX network.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        raw = _structure(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; check onnx_path") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ModelError(f"{path}: broken gzip data ({error}); copy the file again") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        proto = onnx.ModelProto.FromString(raw)
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX file, or truncated; export or copy it again") from error
    if not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(f"{path}: holds no network; export or copy it again")
    return proto


def _structure(path: Path) -> bytes:
    """The serialised model, its weights left in the file where that is possible."""
    with path.open("rb") as file:
        if path.suffix == ".gz" or file.read(2) == b"\x1f\x8b":
            return gzip.decompress(path.read_bytes())
        if file.seek(0, 2) == 0:
            return b""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            try:
                return cut_weights(mapped, path.name)
            except WireError:
                return mapped[:]
