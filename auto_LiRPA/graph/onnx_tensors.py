"""ONNX tensors -> torch tensors: one copy, from the message or from where the data lie in a file."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.errors import ModelError

if TYPE_CHECKING:
    from onnx import TensorProto

# TensorProto.DataType -> (torch, numpy); bfloat16 has no numpy type and is carried as 16-bit integers
_TYPES: dict[int, tuple[torch.dtype, type[np.generic]]] = {
    1: (torch.float32, np.float32),
    2: (torch.uint8, np.uint8),
    3: (torch.int8, np.int8),
    5: (torch.int16, np.int16),
    6: (torch.int32, np.int32),
    7: (torch.int64, np.int64),
    9: (torch.bool, np.bool_),
    10: (torch.float16, np.float16),
    11: (torch.float64, np.float64),
    16: (torch.bfloat16, np.int16),
}
FLOATING = frozenset(number for number, (kind, _) in _TYPES.items() if kind.is_floating_point)
_EXTERNAL = 1  # TensorProto.DataLocation


def torch_tensor(proto: TensorProto, place: str, folder: Path | None = None) -> Tensor:
    """The tensor in its own element type.

    Args:
        proto: the ONNX tensor.
        place: file and tensor name for errors.
        folder: where external data lie; None refuses them.

    Raises:
        ModelError: unknown element type, or data missing or of the wrong length.
    """
    dtype, carrier = _checked_type(proto, place)
    dims = tuple(proto.dims)
    # the data first, so that a damaged shape never asks for memory
    source = _source(proto, place, folder, carrier)
    out = torch.empty(dims, dtype=torch.int16 if dtype == torch.bfloat16 else dtype)
    out.numpy()[...] = source.reshape(dims)
    return _with_dtype(out, dtype)


def _checked_type(proto: TensorProto, place: str) -> tuple[torch.dtype, type[np.generic]]:
    if proto.data_type not in _TYPES:
        raise ModelError(f"{place}: element type {proto.data_type} is not supported; export it as FLOAT or DOUBLE")
    dims = list(proto.dims)
    if min(dims, default=0) < 0:
        raise ModelError(f"{place}: shape {dims} is not valid; the file is damaged")
    return _TYPES[proto.data_type]


def _source(proto: TensorProto, place: str, folder: Path | None, carrier: type[np.generic]) -> np.ndarray:
    """The numbers as one vector of the right length, wherever they lie."""
    count = math.prod(proto.dims)
    if proto.data_location == _EXTERNAL:
        return _external(proto, place, folder, carrier)
    if proto.HasField("raw_data"):
        raw = proto.raw_data
        if len(raw) != count * np.dtype(carrier).itemsize:
            raise ModelError(
                f"{place}: {len(raw)} bytes of data for shape {list(proto.dims)}; the file is damaged, export it again"
            )
        return np.frombuffer(raw, carrier)
    source = _typed_data(proto, place, carrier)
    if source.size != count:
        raise ModelError(f"{place}: {source.size} values for shape {list(proto.dims)}; the file is damaged")
    return source.reshape(-1)


def mapped_tensor(proto: TensorProto, place: str, folder: Path | None = None) -> Tensor:
    """The tensor as it lies in the file, nothing read yet; parts of it may be read and given up one by one.

    Raises:
        ModelError: as `torch_tensor`.
    """
    dtype, carrier = _checked_type(proto, place)
    source = _source(proto, place, folder, carrier).reshape(tuple(proto.dims))
    # numbers of the message itself cannot be written to, and torch would warn
    return _with_dtype(torch.from_numpy(source if source.flags.writeable else source.copy()), dtype)


def weight_tensor(
    proto: TensorProto, place: str, folder: Path | None, dtype: torch.dtype, device: torch.device, *, turned: bool
) -> Tensor:
    """An initialiser as the run wants it: numbers become ``dtype`` on ``device``, whole numbers stay as they are.

    ``turned``: a matrix used as ``x @ W``; its columns become weight rows, so they are laid out in one piece.
    """
    tensor = torch_tensor(proto, place, folder)
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(device, dtype)
    return tensor.t().contiguous().t() if turned and tensor.dim() == 2 else tensor


def _with_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor


def _typed_data(proto: TensorProto, place: str, carrier: type[np.generic]) -> np.ndarray:
    """Values kept in the typed fields (small tensors written by helper functions)."""
    from onnx import numpy_helper

    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{place}: the tensor cannot be read ({_first_line(error)})") from error
    return array.view(carrier) if array.dtype != carrier and array.itemsize == 2 else array.astype(carrier, copy=False)


def _external(proto: TensorProto, place: str, folder: Path | None, carrier: type[np.generic]) -> np.ndarray:
    """Data in a file, mapped for the caller to copy soon (a map kept for long would follow the file's later changes).

    Mapped copy-on-write: what is read can be given up again, and nothing can change the file.
    """
    info = {entry.key: entry.value for entry in proto.external_data}
    if folder is None or "location" not in info:
        raise ModelError(f"{place}: its data lie outside the file and cannot be found")
    # not resolved: a model file may be a link to one elsewhere
    path = Path(os.path.normpath(folder / info["location"]))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise ModelError(f"{place}: external data {info['location']} lie outside its folder; move them beside it")
    count = math.prod(proto.dims)
    need = count * np.dtype(carrier).itemsize
    if not info.get("offset", "0").isdecimal() or not info.get("length", "0").isdecimal():
        raise ModelError(f"{place}: the reference to its external data is damaged")
    offset = int(info.get("offset", "0"))
    if int(info.get("length", need)) != need:
        raise ModelError(f"{place}: {info['length']} bytes of data for shape {list(proto.dims)}; the file is damaged")
    if not path.is_file() or path.stat().st_size < offset + need:
        raise ModelError(f"{place}: external data file {path} is missing or too short; copy it beside the model")
    if count == 0:
        return np.zeros(0, carrier)
    return np.memmap(path, dtype=carrier, mode="c", offset=offset, shape=(count,))


def require_finite(tensor: Tensor, place: str) -> None:
    """A NaN or Inf weight makes every bound meaningless: refused at once.

    Raises:
        ModelError: naming the tensor.
    """
    if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
        return
    # one cheap pass: NaN and Inf survive a sum; a finite tensor may overflow it, so only then look closer
    if bool(torch.isfinite(tensor.detach().sum())) or bool(torch.isfinite(tensor.detach()).all()):
        return
    kind = "NaN" if bool(torch.isnan(tensor).any()) else "Inf"
    raise ModelError(f"{place}: the weights contain {kind}; the network is unusable, train or export it again")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
