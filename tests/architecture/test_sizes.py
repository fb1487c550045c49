"""The size report counts what it says; it judges nothing."""

from __future__ import annotations

from pathlib import Path

from tests.architecture.sizes import Size, file_sizes, function_sizes, report
from tests.architecture.source import sources


def test_sizes_are_counted_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "auto_LiRPA").mkdir()
    (tmp_path / "auto_LiRPA" / "small.py").write_text("x = 1\n")
    (tmp_path / "auto_LiRPA" / "large.py").write_text("def short(): ...\n\n\ndef long():\n    x = 1\n    return x\n")
    files = sources(tmp_path)
    assert file_sizes(files) == [Size(6, "auto_LiRPA/large.py"), Size(1, "auto_LiRPA/small.py")]
    assert function_sizes(files) == [Size(3, "auto_LiRPA/large.py:4 long"), Size(1, "auto_LiRPA/large.py:1 short")]
    assert report(files, top=1).splitlines()[:3] == [
        "2 files, 7 lines, 2 functions",
        "largest files (aim: 300 lines; 0 above it)",
        "      6  auto_LiRPA/large.py",
    ]
