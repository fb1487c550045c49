"""Out of memory as a line that says where, on which rank, and which setting to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from auto_LiRPA.errors import ConfigError, MemoryShort
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.shortage import is_out_of_memory

TILES = "parallel.tile_rows"
LOADING = "set parallel.mode to fsdp or offload, or lower parallel.block_mib"


@contextmanager
def explained_out_of_memory(context: DistributedContext, doing: str, mend: str) -> Iterator[None]:
    """Turns "out of memory" within into one line: "... while ``doing``; ``mend``".

    Raises:
        ConfigError: memory was not enough; raised from what said so. Under several ranks this one is lost then.
    """
    try:
        yield
    except MemoryShort as error:
        raise ConfigError(_line(context, f"{doing}, in {error.kind} with other ranks", mend)) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(_line(context, doing, mend)) from error


def _line(context: DistributedContext, doing: str, mend: str) -> str:
    rank = f" of rank {context.rank}" if context.world_size > 1 else ""
    now = f"{TILES} (now {context.settings.tile_rows})"
    return f"out of memory on {context.device}{rank} while {doing}; {mend.replace(TILES, now)}"
