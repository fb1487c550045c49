"""Data sets by name, from the user's own files: ERAN's, MADRY's and SDP's arrays, samples, MNIST and CIFAR.

A name is recognised by its parts, in the order of interface 2.3. Files lie in a folder `datasets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from auto_LiRPA.errors import ConfigError
from complete_verifier.datasets.dataset import Dataset, Floats, Integers, Scaling
from complete_verifier.datasets.files import first_file, read_cifar, read_idx, read_npy

_FIRST = 10_000  # examples of a test split
_BYTE = 255

_SDP_MEAN, _SDP_STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


@dataclass(frozen=True, slots=True)
class Request:
    """What the configuration says about a named data set. ``scaling`` and ``epsilon`` are None where it is silent."""

    name: str
    folders: tuple[Path, ...]  # in which a folder `datasets` is looked for
    scaling: Scaling | None
    epsilon: float | None
    norm: float
    model: str | None = None  # `model.name`, which SAMPLE files are sorted by


@dataclass(frozen=True, slots=True)
class _Images:
    """Images ``[N, C, H, W]`` in [0, 1] (or scaled already), and what belongs to them."""

    images: Floats
    labels: Integers
    runnerup: Integers | None = None


@dataclass(frozen=True, slots=True)
class _Defaults:
    scaling: Scaling
    epsilon: float | None


def load_named(request: Request) -> Dataset:
    """The data set of a name.

    Raises:
        ConfigError: the name is unknown, a file is missing or damaged, or epsilon is not set.
    """
    name = request.name
    folders = [folder / "datasets" for folder in request.folders]
    kind = "cifar" if "CIFAR" in name else "mnist"
    if "ERAN" in name or "MADRY" in name:
        tag = "eran" if "ERAN" in name else "madry"
        found = _arrays(name, _folders(folders, tag, kind, name), kind, channels_last=False)
        return _dataset(request, found, _eran_defaults(name))
    if "SDP" in name:
        found = _arrays(name, _folders(folders, "sdp", kind, name), kind, channels_last=True)
        return _dataset(request, found, _sdp_defaults(kind))
    if "SAMPLE" in name:
        sub = request.model or kind
        places = [f / "sample100_unnormalized" / sub for f in folders] + [f / name for f in folders]
        return _dataset(request, _arrays(name, places, kind, channels_last=False), _Defaults(Scaling(), None))
    if "CIFAR" in name or "MNIST" in name:
        return _dataset(request, _test_split(name, folders), _Defaults(Scaling(), None))
    raise ConfigError(
        f'data.dataset = {name}: unknown; it is MNIST, CIFAR, CIFAR100, a name with SDP, ERAN, MADRY or SAMPLE in it,'
        ' or Customized("file.py", "function")'
    )


def _folders(folders: Sequence[Path], tag: str, kind: str, name: str) -> list[Path]:
    subs = (f"{tag}/{kind}", f"{tag}/{kind}_{tag}", f"{kind}_{tag}", name)
    return [folder / sub for folder in folders for sub in subs]


def _eran_defaults(name: str) -> _Defaults:
    if "CIFAR" in name:
        scaling = Scaling((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201))
        return _Defaults(Scaling() if "_UN" in name else scaling, 2 / _BYTE)
    return _Defaults(Scaling() if "_UN" in name else Scaling((0.1307,), (0.3081,)), 0.3)


def _sdp_defaults(kind: str) -> _Defaults:
    if kind == "mnist":
        return _Defaults(Scaling(), 0.3)
    mean, std = (tuple(v / _BYTE for v in values) for values in (_SDP_MEAN, _SDP_STD))
    return _Defaults(Scaling(mean, std), 2 / _BYTE)


def _dataset(request: Request, found: _Images, defaults: _Defaults) -> Dataset:
    scaling = request.scaling or defaults.scaling
    epsilon = defaults.epsilon if request.epsilon is None else request.epsilon
    if epsilon is None:
        raise ConfigError(f"specification.epsilon is missing: data.dataset = {request.name} has no radius of its own")
    lower, upper = scaling.ends(found.images)
    return Dataset(
        x=scaling.apply(found.images),
        labels=found.labels,
        lower=lower,
        upper=upper,
        eps=scaling.radius(epsilon, found.images),
        norm=request.norm,
        runnerup=found.runnerup,
        source=request.name,
    )


def _arrays(name: str, folders: Sequence[Path], kind: str, channels_last: bool) -> _Images:
    """`X*.npy` and `y*.npy` (and `runnerup*.npy`) of the first folder that has them."""
    for folder in folders:
        images, labels = (sorted(folder.glob(f"{letter}*.npy")) for letter in ("X", "y"))
        if images and labels:
            x, y = read_npy(images[0]), read_npy(labels[0]).reshape(-1).astype(np.int64)
            second = sorted(folder.glob("runnerup*.npy"))
            runnerup = read_npy(second[0]).reshape(-1).astype(np.int64) if second else None
            if len(x) != len(y):
                raise ConfigError(f"{labels[0]}: {len(y)} labels, but {images[0].name} has {len(x)} images")
            return _Images(_shaped(x, kind, channels_last, images[0]), y, runnerup)
    places = ", ".join(map(str, folders))
    raise ConfigError(f"data.dataset = {name}: no files X*.npy and y*.npy in {places}; put them into one of these")


def _shaped(x: Floats, kind: str, channels_last: bool, path: Path) -> Floats:
    """Images as ``[N, C, H, W]`` in [0, 1]."""
    channels, side = (3, 32) if kind == "cifar" else (1, 28)
    if x[0].size != channels * side * side:
        raise ConfigError(f"{path}: images of shape {list(x.shape[1:])}; {channels} x {side} x {side} are needed")
    if x.dtype.kind in "iu":
        x = x.astype(np.float32) / np.float32(_BYTE)
    last = channels_last and x.shape[1:] != (channels, side, side)
    if last or (x.ndim == 4 and x.shape[-1] == channels and x.shape[1] != channels):
        return x.reshape(-1, side, side, channels).transpose(0, 3, 1, 2)
    return x.reshape(-1, channels, side, side)


def _test_split(name: str, folders: Sequence[Path]) -> _Images:
    what = f"data.dataset = {name}"
    if "MNIST" in name:
        places = [f / sub for f in folders for sub in ("MNIST/raw", "mnist", "MNIST", ".")]
        images, labels = (
            read_idx(first_file(places, (f"t10k-{stem}-ubyte", f"t10k-{stem}-ubyte.gz"), what))
            for stem in ("images-idx3", "labels-idx1")
        )
        pixels = images[:, None]
    elif "CIFAR100" in name:
        places = [f / sub for f in folders for sub in ("cifar-100-python", "cifar-100-binary", ".")]
        pixels, labels = read_cifar(first_file(places, ("test", "test.bin"), what))
    else:
        places = [f / sub for f in folders for sub in ("cifar-10-batches-py", "cifar-10-batches-bin", ".")]
        pixels, labels = read_cifar(first_file(places, ("test_batch", "test_batch.bin"), what))
    if len(pixels) != len(labels):
        raise ConfigError(f"{what}: {len(pixels)} images, but {len(labels)} labels; fetch its files again")
    scaled = pixels[:_FIRST].astype(np.float32) / np.float32(_BYTE)
    return _Images(scaled, labels[:_FIRST].astype(np.int64))
