"""An interruption waits for the end of an import, which would stay half done, and of a finaliser that would drop it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support import ROOT

START = """
import signal, sys, time
from complete_verifier.driver.interrupts import Interrupts, Interruption
interrupts = Interrupts()
def within(seconds, work):
    with interrupts.installed():
        try:
            with interrupts.exposed(seconds):
                work()
                end = time.monotonic() + 5
                while time.monotonic() < end:
                    pass
                print("not interrupted")
        except Interruption as error:
            print(type(error).__name__)
"""


def _told(text: str, folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", START + textwrap.dedent(text)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_an_import_ends_first(tmp_path: Path) -> None:
    lines = "import time\nend = time.monotonic() + 1.2\nwhile time.monotonic() < end:\n    pass\nwhole = True\n"
    (tmp_path / "slow_module.py").write_text(lines, encoding="utf-8")
    found = _told(
        """
        def work():
            import slow_module
        within(0.0, work)
        print(getattr(sys.modules.get("slow_module"), "whole", False))
        """,
        tmp_path,
    )
    assert found == ["DeadlinePassed", "True"]


@pytest.mark.parametrize("way", ["alarm", "term"])
def test_a_finaliser_does_not_swallow_it(way: str, tmp_path: Path) -> None:
    found = _told(
        f"""
        import os, threading
        class Slow:
            def __del__(self):
                end = time.monotonic() + 1.2
                while time.monotonic() < end:
                    pass
        def work():
            if {way == "term"}:
                threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
            slow = Slow()
            del slow
        within({0.0 if way == "alarm" else 60.0}, work)
        """,
        tmp_path,
    )
    assert found == ["DeadlinePassed" if way == "alarm" else "Terminated"]
