"""What the configuration and the number of ranks mean for the placement, and the choice of `parallel.mode: auto`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from auto_LiRPA.errors import ConfigError, UserError
from auto_LiRPA.parallel.groups import Group
from auto_LiRPA.parallel.settings import ParallelSettings
from complete_verifier.config import LoadedConfig
from complete_verifier.driver.seat import Seat

if TYPE_CHECKING:
    from complete_verifier.driver.planning import Choice, Place

_OLD_SWITCH = "FSDP_DISABLE"  # of the earlier fork: 1 keeps weights whole under several ranks


@dataclass(slots=True)
class Placing:
    """The settings that are asked for, and lines about what was made of them."""

    loaded: LoadedConfig
    device: torch.device
    seat: Seat | None
    notes: list[str] = field(default_factory=list)

    def settings(self) -> ParallelSettings:
        """The section `parallel`, with older spellings; `auto` under several ranks if no mode is set.

        Raises:
            ConfigError: two settings contradict each other.
        """
        settings = self.loaded.config.parallel.settings()
        if self.loaded.config.bab.domain_parallel:
            settings = self._domain_parallel(settings)
        if self.seat is None:
            return settings
        whole = os.environ.get(_OLD_SWITCH) == "1"
        if self.loaded.is_set("parallel.mode"):
            if whole:
                self.notes.append(f"warning: {_OLD_SWITCH}=1 does not act: parallel.mode = {settings.mode} is set")
            return settings
        if whole:
            self.notes.append(f"{_OLD_SWITCH}=1: every rank keeps whole weights")
            return whole_weights(settings)
        return replace(settings, mode="auto")

    def decide(self, settings: ParallelSettings, world: Group) -> ParallelSettings:
        """What `auto` means: planned by rank 0 for the smallest device of all, the same on all ranks."""
        from complete_verifier.driver.planning import place_of

        place = place_of(self.loaded, self.device, world.size, 1 if self.seat is None else self.seat.local_world_size)
        if world.observer is not None:
            world.observer.at("choosing the placement", patient=True)
        memory = world.smallest(place.memory)
        chosen: tuple[ParallelSettings, str] | None = None
        if world.rank == 0:
            try:
                choice = self._planned(settings, replace(place, memory=memory))
                chosen = (choice.settings, choice.reason)
            except (UserError, RuntimeError) as error:
                # a network that cannot be read says so when all ranks read it
                chosen = (whole_weights(settings), f"no plan could be made ({' '.join(str(error).split())[:200]})")
        agreed = world.same_object(chosen)
        assert agreed is not None
        found, reason = agreed
        asked = "is set" if self.loaded.is_set("parallel.mode") else f"by {world.size} ranks and no parallel.mode"
        self.notes.append(f"parallel.mode auto ({asked}): {found.mode}: {reason}")
        return found

    def _planned(self, settings: ParallelSettings, place: Place) -> Choice:
        from complete_verifier.driver.planning import Question, make_plan

        return make_plan(Question.of(self.loaded), settings, place).choice

    def _domain_parallel(self, settings: ParallelSettings) -> ParallelSettings:
        origin = self.loaded.origins["bab.domain_parallel"]
        if settings.domains == "replicate":
            raise ConfigError(
                f"{origin}: bab.domain_parallel = true contradicts parallel.domains = replicate; keep one of the two"
            )
        if self.seat is None:
            self.notes.append("warning: bab.domain_parallel: does not act on one rank; start several (--nproc N)")
        return replace(settings, domains="shard")


def whole_weights(settings: ParallelSettings) -> ParallelSettings:
    """Whole weights on every rank, which therefore shares out all else that is left open."""
    if settings.mesh is not None:
        return replace(settings, mode="single")
    rows, domains = ("shard" if value == "auto" else value for value in (settings.rows, settings.domains))
    return replace(settings, mode="single", rows=rows, domains=domains)


def placed(loaded: LoadedConfig, error: ConfigError) -> ConfigError:
    """An error about a key of the section `parallel`, with the file or flag that gave it in front."""
    key = str(error).split(" ", 1)[0].rstrip(":")
    origin = loaded.origins.get(key)
    return error if origin is None or not loaded.is_set(key) else ConfigError(f"{origin}: {error}")
