"""What is shown to readers runs: the example script and the code of the documentation page."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.support import ROOT


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "verify_from_python.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "around the origin: unsat (safe" in printed and "in the wide box: sat (unsafe" in printed
    assert "in the corners: unsat" in printed and "eps 0.5: sat" in printed


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "python_api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    monkeypatch.chdir(ROOT)
    assert runpy.run_path(str(script))["summary"] == {"safe-incomplete": [0]}
