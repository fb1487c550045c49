"""What the processes of these tests run: each task is the name of something that a process may do."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import MethodType

counter = 0


def act(shared: object, task: object, send: Callable[[object], None]) -> None:
    """Do what ``task`` says."""
    global counter  # noqa: PLW0603 (the test asks whether a process sees what another one left)
    counter += 1
    assert isinstance(task, tuple)
    match task:
        case ("add", number):
            send((shared, number + 1, counter))
        case ("print", text):
            print(text)  # noqa: T201
        case ("raise", text):
            raise MemoryError(text)
        case ("signal", number):
            os.kill(os.getpid(), number)
        case ("half",):
            assert isinstance(send, MethodType)
            send("first")
            os.write(send.__self__.fileno(), struct.pack("!i", 1000) + b"cut off")
            os.kill(os.getpid(), signal.SIGKILL)
        case ("hang", path):
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            Path(path).write_text(str(os.getpid()))
            time.sleep(600)
        case ("leave", path):
            helper = subprocess.Popen(["sleep", "600"])
            Path(path).write_text(str(helper.pid))
        case ("orphan once", path):
            if not Path(path).exists():
                Path(path).write_text("")
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(600)
            send("second try")
        case ("orphan",):
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)


def hang_forever(path: str) -> None:
    """A sweep whose two processes hang; run by a test as a program of its own, which it then kills."""
    from complete_verifier.sweep.processes import Processes

    with Processes("tests.sweep.targets:act", None) as processes:
        for name in ("a", "b"):
            processes.start(("hang", f"{path}/{name}"))
        time.sleep(600)
