"""What is shown to readers runs: the example script and the code of the documentation page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


def run(script: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example() -> None:
    printed = run(ROOT / "examples" / "verify_from_python.py")
    assert "around the origin: unsat (safe" in printed and "in the wide box: sat (unsafe" in printed
    assert "in the corners: unsat" in printed and "eps 0.5: sat" in printed


@pytest.mark.parametrize("page", ["python_api.md"])
def test_the_page(page: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    run(script)
