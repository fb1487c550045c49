"""Exceptions that a user may meet. Every message is one line: the place, what is wrong, the mend."""

from __future__ import annotations


class VerifierError(Exception):
    """Root of all errors raised on purpose by this project."""


class UserError(VerifierError):
    """Bad input: reported as one line with exit code 2, never with a traceback."""


class ConfigError(UserError):
    """A YAML key, command-line flag or option that is unknown, mistyped or impossible here."""


class ModelError(UserError):
    """A network file or module that cannot be read, or whose shapes or weights are unusable."""


class UnsupportedOperator(ModelError):
    """A node whose operator (or this use of it) has no bound rules here."""


class SpecError(UserError):
    """A property that cannot be read or does not fit the network."""


class ContractError(VerifierError):
    """Our own bug: an internal promise was broken. Never reported as a verdict."""


class WorkerFailed(VerifierError):
    """A rank died, hung or ran with other input than its peers (exit code 3)."""


class RankUnreachable(WorkerFailed):
    """A collective broke off: another rank has ended, and its end is the reason to be told."""


class MemoryShort(WorkerFailed):
    """Memory ran out within a collective: the other ranks wait in it, so nothing can be undone or tried again.

    ``kind``: of the collective.
    """

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(
            f"out of memory in {kind} with other ranks ({words}); lower parallel.tile_rows or solver.batch_size"
        )
        self.kind, self.words = kind, words

    def __reduce__(self) -> tuple[type[MemoryShort], tuple[str, str]]:
        return type(self), (self.kind, self.words)


class OutOfTime(VerifierError):
    """The deadline passed within a bounding pass. The stage that catches it goes on with what it has."""
