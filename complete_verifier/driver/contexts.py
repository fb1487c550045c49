"""The context of a run: device, threads and placement from the configuration."""

from __future__ import annotations

from auto_LiRPA.errors import ConfigError, RankUnreachable
from auto_LiRPA.parallel.axes import resolve_axes
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.groups import Observer
from complete_verifier.config import LoadedConfig
from complete_verifier.driver.choices import choose_device
from complete_verifier.driver.placing import Placing, placed
from complete_verifier.driver.seat import Seat


def make_context(loaded: LoadedConfig, observer: Observer | None = None) -> tuple[DistributedContext, str | None]:
    """One rank's context, and lines for the user where its device or placement was chosen for them.

    Args:
        observer: told of every collective.

    Raises:
        ConfigError: a device, a mode or a number of ranks that is not available.
        RankUnreachable: the ranks did not meet.
    """
    device, note = choose_device(loaded)
    placing = Placing(loaded, device, Seat.of_environment())
    if observer is not None:
        observer.at("meeting the other ranks")
    try:
        context = DistributedContext.from_env(placing.settings(), device, observer, placing.decide)
    except ConfigError as error:
        raise placed(loaded, error) from None
    except RuntimeError as error:
        if observer is None:
            raise
        raise RankUnreachable(f"the ranks did not meet: {str(error).splitlines()[0]}") from error
    notes = [*([] if note is None else [note]), *placing.notes]
    return context, "\n".join(notes) or None


def check_placement(loaded: LoadedConfig, seat: Seat) -> str | None:
    """What a rank in this seat can see of its placement before there are others; the device's line for the user.

    Raises:
        ConfigError: a device, a mode or a number of ranks that is not available.
    """
    device, note = choose_device(loaded)
    try:
        resolve_axes(Placing(loaded, device, seat).settings(), seat.world_size)
    except ConfigError as error:
        raise placed(loaded, error) from None
    return note
