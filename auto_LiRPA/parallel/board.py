"""Notes that ranks leave each other beside their collectives, in the store that they met through.

A note is there also when its writer is not any more, and reading one never waits for a rank: what a rank needs to find
out why a collective does not come back.
"""

from __future__ import annotations

import socket
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore

from auto_LiRPA.errors import RankUnreachable

_MISSING: str | None = None


class BoardLost(RankUnreachable):
    """The process that keeps the notes is gone: the launcher, or rank 0 where there is none."""


class Board:
    """One connection, safe to use from several threads."""

    def __init__(self, store: TCPStore, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    @classmethod
    def connected(cls, host: str, port: int, prefix: str, timeout_s: float) -> Board:
        """A connection to the process that keeps the notes; waits for it to appear.

        Raises:
            BoardLost: nobody listens there.
        """
        try:
            store = TCPStore(
                host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
            )
        except RuntimeError as error:
            raise BoardLost(f"{host}:{port}: nobody answers") from error
        return cls(store, prefix)

    @classmethod
    def served(cls, listening: socket.socket, prefix: str) -> Board:
        """Keep the notes in this process, at a socket that listens already and belongs to the board from here on."""
        host, port = listening.getsockname()[:2]
        store = TCPStore(
            "127.0.0.1" if host in ("0.0.0.0", "::") else host,
            port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
        return cls(store, prefix)

    def at(self, prefix: str) -> Board:
        """The same notes' keeper, for notes of another run."""
        return Board(self._store, prefix)

    def put(self, key: str, text: str) -> None:
        """Leave a note.

        Raises:
            BoardLost: as all methods.
        """
        try:
            self._store.set(self._prefix + key, text)
        except RuntimeError as error:
            raise BoardLost("the notes cannot be written") from error

    def get(self, key: str) -> str | None:
        """A note, if it is there."""
        try:
            if not self._store.check([self._prefix + key]):
                return _MISSING
            found: bytes = self._store.get(self._prefix + key)
        except RuntimeError as error:
            raise BoardLost("the notes cannot be read") from error
        return found.decode()

    def first(self, key: str) -> bool:
        """Whether nobody has asked this before."""
        try:
            return bool(self._store.add(self._prefix + key, 1) == 1)
        except RuntimeError as error:
            raise BoardLost("the notes cannot be written") from error
