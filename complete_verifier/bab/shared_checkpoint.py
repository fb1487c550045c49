"""A checkpoint that several ranks write into one folder: each its own sub-problems, and one of them makes it count."""

from __future__ import annotations

from auto_LiRPA.parallel.groups import Group
from complete_verifier.bab.checkpoint import CheckpointWriter, Part, Snapshot


def write_together(writer: CheckpointWriter, snapshot: Snapshot, world: Group, number: int | None) -> bool:
    """Write a checkpoint; all ranks call it. False (and a warning) if some rank could not: the one before stays.

    Nobody goes on before it is in place, so that no rank's next files are taken for those of an old one.

    Args:
        number: of this rank's sub-problems among all; None on a rank whose ones another rank writes too.
    """
    began = writer.now()
    parts: tuple[Part, ...] = ()
    fault = ""
    try:
        if number is not None:
            parts = writer.write_parts(snapshot.pieces, number)
    except OSError as error:
        fault = error.strerror or str(error)
    every = world.objects((parts, fault))
    faults = [line for _, line in every if line]
    if not faults and world.rank == 0:
        faults = _published(writer, snapshot, [mine for mine, _ in every])
    faults = world.same_object(faults)
    if faults:
        if world.rank == 0:
            writer.failed(faults[0])
        return False
    writer.succeeded(began, sum(part.bytes for part in parts))
    return True


def _published(writer: CheckpointWriter, snapshot: Snapshot, parts: list[tuple[Part, ...]]) -> list[str]:
    """Make it count; what prevents it, if anything does."""
    missing = [part.name for mine in parts for part in mine if not (writer.folder / part.name).exists()]
    if missing:
        return [f"{missing[0]} of another rank is not there: the folder has to be one that all machines share"]
    try:
        writer.publish(snapshot, parts)
    except OSError as error:
        return [error.strerror or str(error)]
    return []
