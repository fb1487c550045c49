"""The entry of the command line: `abcrown`, `python -m complete_verifier`, and the checkout's script."""

from __future__ import annotations

import time

_ENTERED = time.monotonic()  # before any import of ours: the deadline counts from the start of the process

import atexit  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from typing import NoReturn  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code (0 verdict, 1 internal error, 2 bad input, 3 a rank was lost).

    Args:
        argv: its words; None takes this process's own. Then the deadline counts from the start of the process, else
            from this call.
    """
    from complete_verifier.driver.process_clock import command_start
    from complete_verifier.driver.short_help import HELP
    from complete_verifier.driver.start_up import paused_collection

    # sums of matrix products are the same on every run only with a workspace that is always the same
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if "--debug" not in (sys.argv if argv is None else argv):  # one line says what went wrong, not those of libraries
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    started = command_start(_ENTERED) if argv is None else time.monotonic()
    words = sys.argv[1:] if argv is None else argv
    if not words:
        print(HELP, end="")
        return 0
    with paused_collection():
        from complete_verifier.driver.cli import main as run
    return run(words, started)


def command() -> NoReturn:
    """Run this process's own command line and end the process at once.

    Taking the tensor library down object by object takes up to a second, which would count against the deadline. What
    others asked to be done at the end is done.
    """
    code = main()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    command()
