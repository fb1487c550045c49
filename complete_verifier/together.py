"""What the ranks of a run decide together: one of them does it, all of them know."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from auto_LiRPA.errors import VerifierError
from auto_LiRPA.parallel.groups import Group

T = TypeVar("T")


def first_rank(group: Group, make: Callable[[], T]) -> T:
    """What ``make`` returns on the group's first rank, for all of them; an error that it raises on purpose, too.

    For what needs no copy of itself on every rank (solver processes, a session of onnxruntime, files), and for what
    user code or a clock decides.

    Raises:
        VerifierError: the one that ``make`` raised.
    """
    if group.size == 1:
        return make()
    found: tuple[T | None, VerifierError | None] = (None, None)
    if group.rank == 0:
        try:
            found = (make(), None)
        except VerifierError as error:
            found = (None, error)
    value, error_there = group.same_object(found)
    if error_there is not None:
        raise error_there
    return value  # type: ignore[return-value]  # None only where ``make`` may return it
