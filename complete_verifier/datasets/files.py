"""Image files as their publishers pack them: MNIST's IDX, CIFAR's pickled or binary batches, and npy arrays.

Nothing is downloaded. Pickles are opened without running what they ask for: only numpy arrays and plain values pass.
"""

from __future__ import annotations

import gzip
import pickle
import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auto_LiRPA.errors import ConfigError

Arrays = tuple[NDArray[Any], NDArray[np.int64]]

_IDX_TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype(np.uint8), 0x0D: np.dtype(">f4"), 0x0E: np.dtype(">f8")}
_PIXELS = 3 * 32 * 32


def first_file(folders: Sequence[Path], names: Sequence[str], what: str) -> Path:
    """The first of some files that exists; ConfigError (one line) that says where it was looked for."""
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    places = ", ".join(str(folder) for folder in folders)
    raise ConfigError(f"{what}: no file {' or '.join(names)} in {places}; put it there, nothing is downloaded")


def read_idx(path: Path) -> NDArray[Any]:
    """An IDX file, plain or gzipped."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        zeros, kind, axes = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
        array = np.frombuffer(data, _IDX_TYPES[kind], offset=4 + 4 * axes)
        if zeros or array.size != np.prod(shape):
            raise ValueError
        return array.reshape(shape)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, struct.error, EOFError, zlib.error):
        raise ConfigError(f"{path}: not an IDX file, or damaged; fetch it again") from None


def read_cifar(path: Path) -> Arrays:
    """A batch of CIFAR-10 or CIFAR-100, pickled (`test_batch`, `test`) or binary (`.bin`): ``[N, 3, 32, 32]`` bytes."""
    try:
        if path.suffix == ".bin":
            return _binary(path)
        with path.open("rb") as file:
            batch = _NumbersOnly(file, encoding="bytes").load()
        images = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch.get(b"labels", batch.get(b"fine_labels")), dtype=np.int64)
        if labels.shape != (len(images),):
            raise ValueError
        return images, labels
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (pickle.UnpicklingError, ValueError, KeyError, TypeError, AttributeError, EOFError, IndexError, ImportError):
        raise ConfigError(f"{path}: not a batch of CIFAR images, or damaged; fetch it again") from None


def _binary(path: Path) -> Arrays:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    for label_bytes in (1, 2):  # CIFAR-100 has a coarse label before the fine one
        if data.size and data.size % (_PIXELS + label_bytes) == 0:
            rows = data.reshape(-1, _PIXELS + label_bytes)
            return rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1].astype(np.int64)
    raise ValueError


class _NumbersOnly(pickle.Unpickler):
    """Opens pickles of numpy arrays and plain values; anything else in them is refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct", "_frombuffer", "ndarray", "dtype", "scalar"}
        if module.split(".")[0] == "numpy" and name in allowed:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_npy(path: Path) -> NDArray[Any]:
    """A `.npy` file of numbers."""
    try:
        array: NDArray[Any] = np.load(BytesIO(path.read_bytes()), allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, EOFError):
        raise ConfigError(f"{path}: not an npy file of numbers, or damaged; write it with numpy.save") from None
    if array.dtype.kind not in "fiu":
        raise ConfigError(f"{path}: holds {array.dtype}; numbers are needed")
    return array
