"""The report in a real browser, where there is one: it draws something, and a click sorts the table."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.sweep.reports import write_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

# The policy of the page forbids scripts that are not in it, so the test writes its own into the page.
CLICK = """
<script>
  const headers = [...document.querySelectorAll("#instances th button")];
  const order = () => [...document.querySelectorAll("#instances tbody tr:not([hidden]) td:first-child")]
    .map((cell) => cell.textContent).join(" ");
  const press = (name) => headers.find((header) => header.textContent === name).click();
  const told = [order()];
  for (const name of ["Seconds", "Seconds", "Worst bound", "Worst bound", "Verdict"]) {
    press(name);
    told.push(order());
  }
  press("#");
  document.querySelector('.chip[data-kind="unsat"]').click();
  told.push(order() + " " + document.getElementById("shown").textContent);
  document.getElementById("theme").click();
  told.push(document.documentElement.dataset.theme);
  document.title = told.join(" | ");
</script>
"""


def browse(path: Path, flags: Sequence[str]) -> str:
    assert BROWSER is not None
    line = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *flags]
    line += [f"--user-data-dir={path.parent / 'profile'}", path.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


def test_a_click_sorts(tmp_path: Path) -> None:
    path = write_page(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", f"{CLICK}</body>"), encoding="utf-8")
    title = re.search("<title>(.*?)</title>", browse(path, ["--dump-dom"]))
    assert title is not None
    assert title.group(1).split(" | ") == [
        "0 1 2 3 4 5 6",
        "3 4 0 1 6 2 5",  # by seconds
        "5 2 6 1 0 4 3",
        "2 0 5 6 1 4 3",  # by the worst bound: what has none stays last, in the order it had
        "0 2 5 6 1 4 3",
        "4 5 1 2 0 6 3",  # by verdict: error, late, sat, timeout, unsat
        "0 3 6 3 of 7 instances",  # unsat only
        "dark",
    ]


@pytest.mark.parametrize("width", [1280, pytest.param(520, marks=pytest.mark.soak)])
def test_it_draws_something(tmp_path: Path, width: int) -> None:
    numpy, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    shot = tmp_path / "shot.png"
    browse(write_page(tmp_path), [f"--window-size={width},1600", f"--screenshot={shot}"])
    pixels = numpy.asarray(image.open(shot).convert("RGB"), dtype=int)
    assert pixels.shape[1] == width
    colours = numpy.unique(pixels.reshape(-1, 3), axis=0)
    assert len(colours) > 200  # a blank page has one
    background = pixels[0, 0]
    drawn = (abs(pixels - background).sum(-1) > 12).mean((1,))
    assert (drawn > 0.02).mean() > 0.6  # from top to bottom, not one corner
