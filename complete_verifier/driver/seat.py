"""Which one of several ranks this process is: the environment that `torchrun` and our own launcher set."""

from __future__ import annotations

import os
from dataclasses import dataclass

_LAUNCHER = "ABCROWN_LAUNCHER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A rank among ``world_size``. ``attempt``: how often the ranks were started anew before."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    host: str  # where the store is that the ranks meet through
    port: int
    attempt: int = 0
    most_attempts: int = 0
    kept: bool = True  # the store outlives the ranks, because their launcher keeps it
    launched: bool = False  # by our own launcher, which sees how a rank ends

    @classmethod
    def of_environment(cls) -> Seat | None:
        """This process's seat; None if it is alone."""
        values = os.environ
        if int(values.get("WORLD_SIZE", "1")) <= 1 or "RANK" not in values:
            return None
        return cls(
            rank=int(values["RANK"]),
            world_size=int(values["WORLD_SIZE"]),
            local_rank=int(values.get("LOCAL_RANK", "0")),
            local_world_size=int(values.get("LOCAL_WORLD_SIZE", "1")),
            node_rank=int(values.get("GROUP_RANK", "0")),
            host=values.get("MASTER_ADDR", "127.0.0.1"),
            port=int(values.get("MASTER_PORT", "29500")),
            attempt=int(values.get("TORCHELASTIC_RESTART_COUNT", "0")),
            most_attempts=int(values.get("TORCHELASTIC_MAX_RESTARTS", "0")),
            kept=values.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            launched=_LAUNCHER in values,
        )

    def take(self) -> None:
        """Make this process's environment say so, for all that asks it."""
        os.environ.update(
            {
                "RANK": str(self.rank),
                "WORLD_SIZE": str(self.world_size),
                "LOCAL_RANK": str(self.local_rank),
                "LOCAL_WORLD_SIZE": str(self.local_world_size),
                "GROUP_RANK": str(self.node_rank),
                "MASTER_ADDR": self.host,
                "MASTER_PORT": str(self.port),
                "TORCHELASTIC_RESTART_COUNT": str(self.attempt),
                "TORCHELASTIC_MAX_RESTARTS": str(self.most_attempts),
                "TORCHELASTIC_USE_AGENT_STORE": str(self.kept),
                _LAUNCHER: str(os.getppid()),
            }
        )

    @property
    def tried_again(self) -> bool:
        """Whether ranks are started anew if one of these fails."""
        return self.attempt < self.most_attempts

    @property
    def notes(self) -> str:
        """Where this attempt's notes stand on the board."""
        return f"abcrown/{self.attempt}/"


def speaks() -> bool:
    """Whether this process prints and writes files: it is alone, or the first of several ranks."""
    seat = Seat.of_environment()
    return seat is None or seat.rank == 0


def restarted() -> bool:
    """Whether the ranks of this run were started anew after one was lost."""
    seat = Seat.of_environment()
    return seat is not None and seat.attempt > 0
