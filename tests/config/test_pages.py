"""The generated pages are up to date, and say something about each option."""

from __future__ import annotations

from pathlib import Path

import pytest

from complete_verifier.config.options import option_table
from complete_verifier.config.pages import PAGES, options_page, write_pages
from complete_verifier.config.run_options import RunOptions

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_up_to_date(name: str) -> None:
    written = (ROOT / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "out of date: run python -m complete_verifier.config.pages"


def test_pages_are_written_where_asked(tmp_path: Path) -> None:
    write_pages(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == set(PAGES)


def test_every_flag_and_meaning_is_on_the_page() -> None:
    rows = [line for line in options_page().splitlines() if line.startswith("| `")]
    options = [*option_table(RunOptions).values(), *option_table().values()]
    assert len(rows) == len(options)
    for row, option in zip(rows, options, strict=True):
        assert f"`{option.flag}`" in row and option.meaning in row
        assert row.count(" | ") == (4 if row.startswith("| `--") else 5)
