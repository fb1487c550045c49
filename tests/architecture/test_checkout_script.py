"""`python complete_verifier/abcrown.py` finds the packages of its own checkout, from any directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

MAIN = """
import sys
import abcrown
import events
def command():
    print(abcrown.__file__)
    print(events.__file__)
    print(sys.argv[1:])
    sys.exit(2)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A tree with the real script, a stand-in for the command line, and names that are easily confused."""
    root = tmp_path / "checkout"
    tool = root / "complete_verifier"
    tool.mkdir(parents=True)
    shutil.copy(ROOT / "complete_verifier" / "abcrown.py", tool)
    (tool / "__init__.py").touch()
    (tool / "__main__.py").write_text(MAIN)
    (tool / "events.py").touch()
    (root / "events.py").touch()
    (root / "abcrown").mkdir()
    (root / "abcrown" / "__init__.py").touch()
    return root


@pytest.mark.parametrize("start", [".", "complete_verifier", ".."])
def test_the_packages_come_from_the_checkout(checkout: Path, start: str) -> None:
    folder = checkout / start
    script = os.path.relpath(checkout / "complete_verifier" / "abcrown.py", folder)
    done = subprocess.run([sys.executable, script, "--config", "x.yaml"], cwd=folder, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 2  # the exit code of the command is the process's
    assert done.stdout.splitlines() == [
        str(checkout / "abcrown" / "__init__.py"),
        str(checkout / "events.py"),
        "['--config', 'x.yaml']",
    ]


def test_a_path_that_names_the_tools_folder_does_not_hide_packages(checkout: Path) -> None:
    script = checkout / "complete_verifier" / "abcrown.py"
    environment = os.environ | {"PYTHONPATH": str(checkout / "complete_verifier")}
    done = subprocess.run([sys.executable, script], cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[:1] == [str(checkout / "abcrown" / "__init__.py")], done.stderr
