"""Checkpoints as a run was asked for them: the folder, the interval, the checkpoint to go on from, what it must fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import Config, LoadedConfig
from complete_verifier.config.options import option_table
from complete_verifier.config.yaml_file import yaml_text

if TYPE_CHECKING:
    from complete_verifier.bab.checkpoint import Checkpoint, Fingerprint
    from complete_verifier.bab.keeper import Keeper
    from complete_verifier.incomplete.result import IncompleteResult
    from complete_verifier.problem import Problem

DEFAULT_INTERVAL_S = 60.0
# What shapes the tree. The question itself is compared by its numbers; limits, sizes that memory and time change
# anyway, and the stages before the search (what they found is in the checkpoint) may differ from run to run.
_SECTIONS = ("bab.branching.", "bab.clip_n_verify.", "bab.cut.", "solver.beta-crown.")
_OPTIONS = frozenset(
    {"general.double_fp", "general.complete_verifier", "bab.tree_traversal", "bab.force_synchronous"}
)  # fmt: skip
_SYNCHRONOUS = frozenset({"solver.batch_size", "solver.min_batch_size_ratio"})  # part of the tree there


@dataclass(frozen=True, slots=True)
class Keeping:
    """Checkpoints of one run: ``folder`` receives one every ``interval_s`` seconds; ``resumed``: where it goes on."""

    folder: Path
    interval_s: float
    settings: Mapping[str, str]
    resumed: Checkpoint | None

    @property
    def seconds_before(self) -> float:
        """What the search that is resumed had taken."""
        seconds = 0.0 if self.resumed is None else self.resumed.state.get("seconds", 0.0)
        return float(seconds) if isinstance(seconds, int | float) else 0.0

    def line(self) -> str:
        """What is done, for the user."""
        to = f"checkpoints go to {self.folder} every {self.interval_s:g} s"
        if self.resumed is None:
            return to
        return f"going on from {self.resumed.folder} with {self.resumed.rows} sub-problems; {to}"

    def start(self, problem: Problem) -> IncompleteResult | None:
        """What the search that is resumed began with; None where there is none: attack and bounds are still to do.

        Raises:
            ConfigError: it is another network's or another property's, or such a one would be overwritten.
        """
        from complete_verifier.bab.checkpoint import Checkpoint, has_checkpoint
        from complete_verifier.bab.checkpoint_root import root_result

        if problem.graph.spread is not None:
            raise ConfigError("checkpoints: not with parallel.mode tp, where no rank has the whole network; use fsdp")
        found = problem.context.world.objects(None if self.resumed is None else self.resumed.content)
        if found.count(found[0]) < len(found):  # parts of two searches together cover nothing
            raise ConfigError(
                f"--resume: ranks find different checkpoints; {self.folder} has to be a folder that all machines share"
            )
        wanted = self._fingerprint(problem)
        if self.resumed is not None:
            self.resumed.check(wanted)
        if has_checkpoint(self.folder) and not (self.resumed is not None and _same(self.resumed.folder, self.folder)):
            try:
                Checkpoint.read(self.folder).check(wanted)
            except ConfigError as error:
                raise ConfigError(
                    f"--checkpoint {self.folder}: holds another checkpoint, which would be lost; name another folder or"
                    f" remove it ({error})"
                ) from error
        return None if self.resumed is None else root_result(problem, self.resumed.root())

    def keeper(self, problem: Problem, start: IncompleteResult) -> Keeper:
        """What a search over activation splits is given, once it is known what it starts from."""
        from complete_verifier.bab.checkpoint import CheckpointWriter
        from complete_verifier.bab.checkpoint_root import root_tensors
        from complete_verifier.bab.keeper import Keeper

        fingerprint = self._fingerprint(problem)
        return Keeper(CheckpointWriter(self.folder, fingerprint, self.interval_s, root_tensors(start)), self.resumed)

    def _fingerprint(self, problem: Problem) -> Fingerprint:
        from complete_verifier.bab.checkpoint import Fingerprint
        from complete_verifier.bab.digest import network_digest, question_digest

        return Fingerprint(network_digest(problem.graph), question_digest(problem), self.settings)


def plan_keeping(loaded: LoadedConfig, restarted: bool = False) -> Keeping | None:
    """What was asked for; None if neither checkpoints nor a search to go on with.

    Args:
        restarted: the ranks of this run were started anew, so a checkpoint that is there is the one to go on from.

    Raises:
        ConfigError: a folder cannot be used, or holds no (whole) checkpoint, or one of other settings.
    """
    options, interval = loaded.options, loaded.config.bab.checkpoint
    if options.checkpoint is None and options.resume is None and interval is None:
        return None
    from complete_verifier.bab.checkpoint import Checkpoint, has_checkpoint

    folder, settings = _folder(loaded), _settings(loaded.config)
    read, resumed = None if options.resume is None else Path(options.resume), None
    # one folder for both means: go on if there is something to go on from, else begin
    begin = read is not None and options.checkpoint is not None and _same(read, folder) and not has_checkpoint(read)
    if restarted and has_checkpoint(folder):  # this command's own, written before a rank was lost
        read, begin = folder, False
    if read is not None and not begin:
        resumed = Checkpoint.read(read)
        resumed.check_settings(settings)
    _prepare(folder)
    return Keeping(folder, interval or DEFAULT_INTERVAL_S, settings, resumed)


def refuse_checkpoints(loaded: LoadedConfig) -> None:
    """For lists, which go on row by row.

    Raises:
        ConfigError: a checkpoint of one search was asked for.
    """
    for flag, value in (("--checkpoint", loaded.options.checkpoint), ("--resume", loaded.options.resume)):
        if value is not None:
            raise ConfigError(f"{flag} {value}: is for a single instance; a list that is run again goes on by itself")


def _settings(config: Config) -> dict[str, str]:
    """The settings that shape the tree, where they are not the defaults."""
    settings = {}
    for path, option in option_table().items():
        shapes = path.startswith(_SECTIONS) or path in _OPTIONS
        if config.bab.force_synchronous:
            shapes = shapes or path in _SYNCHRONOUS
        value = option.of(config)
        if shapes and value != option.default:
            settings[path] = yaml_text(value)
    return settings


def _folder(loaded: LoadedConfig) -> Path:
    """Where checkpoints go: as asked, else to the folder that is resumed, else beside the results file."""
    for name in (loaded.options.checkpoint, loaded.options.resume):
        if name is not None:
            return Path(name)
    return Path(f"{loaded.config.general.results_file}.checkpoint")


def _prepare(folder: Path) -> None:
    """Make sure, before any long work, that checkpoints can be written."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another rank may have been faster
    except OSError as error:
        why = error.strerror
        raise ConfigError(f"--checkpoint {folder}: cannot be written ({why}); name another folder") from error


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
