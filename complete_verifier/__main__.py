"""The entry of the command line: `abcrown`, `python -m complete_verifier`, and the checkout's script."""

from __future__ import annotations

import time

_ENTERED = time.monotonic()  # before any import of ours: the deadline counts from the start of the process

import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (0 verdict, 1 internal error, 2 bad input, 3 a rank was lost)."""
    from complete_verifier.driver.start_up import paused_collection

    with paused_collection():
        from complete_verifier.driver.cli import main as run
    return run(argv, _ENTERED)


if __name__ == "__main__":
    sys.exit(main())
