"""Checkpoints of a search: whole or not there at all, whenever the process is killed.

A folder holds one checkpoint: `manifest.json` and the safetensors files that it names. A new one is written under new
names first; then the manifest is exchanged by one rename; then the files of the old one go. What it holds is plain
tensors and JSON, so that any search over sub-problems can use it, and the sub-problems are one set of rows that any
number of ranks may write in parts and any other number may share out.
"""

from __future__ import annotations

import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auto_LiRPA.errors import ConfigError
from complete_verifier.bab.tensor_files import checksum, map_tensors, write_tensors

_LOG = logging.getLogger(__name__)

VERSION = 1
MANIFEST = "manifest.json"
# At most this share of a search's time goes into checkpoints: where one takes long, the next one comes later.
MOST_SHARE = 0.08
_GUESSED_BYTES_PER_S, _GUESSED_S = 2e8, 0.05  # before a first one has shown how fast files are written
_OWN_FILES = "part-*.safetensors"
_BEGIN_ANEW = "leave out --resume to begin anew"

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a checkpoint belongs to: digests of both files, and the settings that shape the question and the tree."""

    network: str
    specification: str
    settings: Mapping[str, str]  # by path, as YAML text


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A search between two rounds. ``pieces``: all open sub-problems, some rows at a time, in host memory.

    ``state``: counters. ``extra``: further tensors, such as the leaves of a ledger.
    """

    state: Mapping[str, Json]
    pieces: Iterable[Tensors]
    extra: Tensors


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a checkpoint, as its manifest names it."""

    name: str
    rows: int
    bytes: int
    crc32: int


class CheckpointWriter:
    """Writes the checkpoints of one search into one folder, one replacing the other."""

    def __init__(
        self,
        folder: Path,
        fingerprint: Fingerprint,
        interval_s: float,
        root: Tensors,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """``root``: what the search starts from and never changes, in host memory; written once."""
        self.folder, self._fingerprint, self._interval_s, self._root, self._now = (
            folder, fingerprint, interval_s, root, now,
        )  # fmt: skip
        self._root_part: Part | None = None
        self._generation = _generation(folder)
        self._last_end = now()
        self._bytes_per_s, self._last_cost, self._last_size = _GUESSED_BYTES_PER_S, _GUESSED_S, 0
        self.written = 0
        self.seconds = 0.0  # that the search has waited

    def cost(self, size: int) -> float:
        """Seconds that so many bytes of sub-problems are likely to take."""
        return self._last_cost + max(0, size - self._last_size) / self._bytes_per_s

    def due(self, size: int, seconds_left: float = float("inf")) -> bool:
        """Whether it is time for the next one; ``size``: bytes of the open sub-problems."""
        cost, waited = self.cost(size), self._now() - self._last_end
        return waited >= max(self._interval_s, cost * (1 / MOST_SHARE - 1)) and seconds_left > 3 * cost

    def write(self, snapshot: Snapshot) -> bool:
        """Write a checkpoint of one process. False (and a warning) if it cannot be written: the one before stays."""
        began = self._now()
        try:
            parts = self.write_parts(snapshot.pieces)
            self.publish(snapshot, [parts])
        except OSError as error:
            self.failed(error.strerror)
            return False
        self.succeeded(began, sum(part.bytes for part in parts))
        return True

    def failed(self, why: str | None) -> None:
        """Take note that a checkpoint could not be written."""
        _LOG.warning("%s: no checkpoint could be written (%s); the search goes on", self.folder, why)
        self._last_end = self._now()

    def succeeded(self, began: float, size: int) -> None:
        """Take note of one that was begun at ``began``, with ``size`` bytes of sub-problems from this process."""
        took = self._now() - began
        self._last_cost, self._last_size = took, size
        if size > 2**22 and took > 0:
            self._bytes_per_s = size / took
        self._last_end = self._now()
        self.written += 1
        self.seconds += took

    def write_parts(self, pieces: Iterable[Tensors], rank: int = 0) -> tuple[Part, ...]:
        """This rank's sub-problems as files, which count for nothing before `publish`.

        Raises:
            OSError: they cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._generation += 1
        return tuple(self._part(f"r{rank:03d}-{number:06d}", piece) for number, piece in enumerate(pieces))

    def publish(self, snapshot: Snapshot, parts: Sequence[Sequence[Part]]) -> None:
        """Make it the folder's checkpoint (one rank does), from the parts of all ranks. ``snapshot.pieces`` is ignored.

        Raises:
            OSError: it cannot be written.
        """
        if self._root_part is None:
            self._root_part, self._root = self._part("root", self._root), {}
        extra = self._part("extra", snapshot.extra)
        content: dict[str, Json] = {
            "version": VERSION,
            "generation": self._generation,
            "fingerprint": asdict(self._fingerprint),
            "state": dict(snapshot.state),
            "root": asdict(self._root_part),
            "extra": asdict(extra),
            "domains": [asdict(part) for mine in parts for part in mine],
        }
        content["crc32"] = _crc(content)
        _sync(self.folder)  # the parts' names are on the disk before anything refers to them
        draft = self.folder / f"{MANIFEST}.new"
        with draft.open("wb") as file:
            file.write(json.dumps(content, indent=1, allow_nan=False).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, self.folder / MANIFEST)
        _sync(self.folder)
        named = {self._root_part.name, extra.name, *(part.name for mine in parts for part in mine)}
        for path in self.folder.glob(_OWN_FILES):
            if path.name not in named:
                path.unlink(missing_ok=True)

    def now(self) -> float:
        """By the clock that intervals are measured with."""
        return self._now()

    def _part(self, kind: str, tensors: Tensors) -> Part:
        name = f"part-{self._generation:08d}-{kind}.safetensors"
        written = write_tensors(self.folder / name, tensors, durable=True)
        rows = len(next(iter(tensors.values()))) if tensors else 0
        return Part(name, rows, written.bytes, written.crc32)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was found whole."""

    folder: Path
    fingerprint: Fingerprint
    state: Mapping[str, Json]
    rows: int
    _root: Part
    _extra: Part
    _domains: tuple[Part, ...]

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """The checkpoint in a folder, every file of it checked.

        Raises:
            ConfigError: there is none, it is damaged, or another version wrote it.
        """
        path = folder / MANIFEST
        content = _manifest(path)
        try:
            found = cls(
                folder,
                Fingerprint(**content["fingerprint"]),
                content["state"],
                sum(int(part["rows"]) for part in content["domains"]),
                Part(**content["root"]),
                Part(**content["extra"]),
                tuple(Part(**part) for part in content["domains"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(path, f"an entry is missing or has another form: {error}") from error
        for part in (found._root, found._extra, *found._domains):
            _check(folder / part.name, part)
        return found

    @property
    def content(self) -> tuple[int, ...]:
        """Checksums of all its files: equal where it is the same checkpoint."""
        return tuple(part.crc32 for part in (self._root, self._extra, *self._domains))

    def check(self, wanted: Fingerprint) -> None:
        """Refuse to go on with another question or another tree.

        Raises:
            ConfigError: it belongs to other files or other settings.
        """
        have = self.fingerprint
        for what, mine, other in (
            ("network", have.network, wanted.network),
            ("property", have.specification, wanted.specification),
        ):
            if mine != other:
                raise ConfigError(
                    f"{self.folder}: is the checkpoint of another {what}; give the one that it was written for, or"
                    f" {_BEGIN_ANEW}"
                )
        self.check_settings(wanted.settings)

    def check_settings(self, wanted: Mapping[str, str]) -> None:
        """The part of `check` that needs no network: the settings that shape the tree.

        Raises:
            ConfigError: one of them differs.
        """
        have = self.fingerprint.settings
        for path in sorted({*have, *wanted}):
            before, now = (side.get(path, "its default") for side in (have, wanted))
            if before != now:
                raise ConfigError(
                    f"{self.folder}: was written with {path} = {before}, now it is {now}; set it to {before}, or"
                    f" {_BEGIN_ANEW}"
                )

    def root(self) -> dict[str, Tensor]:
        """What the search started from, in memory."""
        return _loaded(self.folder / self._root.name)

    def extra(self) -> dict[str, Tensor]:
        """The further tensors, in memory."""
        return _loaded(self.folder / self._extra.name)

    def pieces(self, rank: int = 0, world_size: int = 1) -> Iterator[dict[str, Tensor]]:
        """A rank's share of the sub-problems, some rows at a time: every ``world_size``-th row."""
        before = 0
        for part in self._domains:
            mine = torch.arange(part.rows)[(rank - before) % world_size :: world_size]
            before += part.rows
            if len(mine):
                # indexing copies: the file may be replaced while the search goes on
                yield {name: t[mine] for name, t in map_tensors(self.folder / part.name).items()}


def has_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a checkpoint, whole or not."""
    return (folder / MANIFEST).exists()


def _manifest(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path.parent}: holds no checkpoint ({MANIFEST} is missing); {_BEGIN_ANEW}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {_BEGIN_ANEW}") from error
    except ValueError as error:
        raise _damaged(path, "no JSON") from error
    if not isinstance(content, dict) or content.pop("crc32", None) != _crc(content):
        raise _damaged(path, "its checksum is wrong")
    if content.get("version") != VERSION:
        raise ConfigError(
            f"{path}: has format {content.get('version')}, this program reads {VERSION}; resume with the program that"
            f" wrote it, or {_BEGIN_ANEW}"
        )
    return content


def _check(path: Path, part: Part) -> None:
    try:
        size = path.stat().st_size
        if size != part.bytes:
            raise _damaged(path, f"{size} bytes instead of {part.bytes}")
        if checksum(path).crc32 != part.crc32:
            raise _damaged(path, "its checksum is wrong")
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error.strerror}") from error


def _damaged(path: Path, why: str) -> ConfigError:
    return ConfigError(f"{path}: this file of a checkpoint is damaged ({why}); restore it, or {_BEGIN_ANEW}")


def _loaded(path: Path) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in map_tensors(path).items()}


def _crc(content: Mapping[str, Json]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _generation(folder: Path) -> int:
    """The highest number in use: names of a checkpoint that may still be wanted are never written again."""
    numbers = [path.name.split("-")[1] for path in folder.glob(_OWN_FILES)]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _sync(folder: Path) -> None:
    """Names in a folder reach the disk only with the folder itself."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
