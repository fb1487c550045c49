"""README and docs/: examples run as printed, commands and settings are accepted, links and paths exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from complete_verifier.config import check_supported, load_config
from complete_verifier.config.flags import parse_command_line
from tests.support import ROOT

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/results.md",
    "docs/custom_operator.md",
    "docs/vnncomp.md",
)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The arguments of every `abcrown` command in the shell blocks."""
    found = []
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].split("/")[-1] == "abcrown":
                found.append(words[1:])
    return found


def test_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_python_example_runs_as_printed(tmp_path: Path) -> None:
    (example,) = blocks(README, "python")
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_the_settings_file_is_accepted_without_a_warning(tmp_path: Path) -> None:
    (settings,) = blocks(README, "yaml")
    path = tmp_path / "settings.yaml"
    path.write_text(settings, encoding="utf-8")
    loaded = load_config(["--config", str(path)])
    assert check_supported(loaded) == []
    assert loaded.config.attack.pgd_order == "after" and loaded.config.bab.timeout == 60


@pytest.mark.parametrize("document", ["README.md", "docs/results.md"])
def test_commands_are_accepted(document: str) -> None:
    """Flags exist and what they ask for acts; the quickstart's files that are named exist."""
    found = commands((ROOT / document).read_text(encoding="utf-8"))
    assert found
    for words in found:
        parsed = parse_command_line(words)
        if parsed.config is None:
            assert check_supported(load_config(words)) == []
        if document == "README.md":
            named = [word for word in words if word.startswith("quickstart/")]
            assert all((ROOT / word).is_file() for word in named)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(document: str) -> None:
    folder = (ROOT / document).parent
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document: str) -> None:
    """Paths in backticks that begin in a room of the checkout; `*` stands for any name."""
    text = (ROOT / document).read_text(encoding="utf-8")
    rooms = [path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "out"))]
    inner = [f"{package}/" for package in ("auto_LiRPA", "complete_verifier")]
    missing = []
    for name in re.findall(r"`([\w./*-]+/[\w./*-]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if name.split("/")[0] in rooms and not list(ROOT.glob(name.rstrip("/"))):
            missing.append(name)
        elif name.endswith(".py") and not any(list(ROOT.glob(prefix + name)) for prefix in ("", *inner)):
            missing.append(name)
    assert missing == []


def test_every_run_time_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {re.split(r"[^\w-]", line)[0] for line in project["dependencies"]}
    section = README.partition("## Run-time dependencies")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
    assert {name for row in rows for name in row[::2]} == wanted


def test_the_map_names_every_room() -> None:
    section = README.partition("## Map of the rooms")[2].partition("\n## ")[0]
    named = set(re.findall(r"\b(\w+)/ ", section.replace(":", " ")))
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    tracked = {name.split("/")[0] for name in listed.stdout.splitlines() if "/" in name and not name.startswith(".")}
    assert named <= {path.name for path in ROOT.iterdir()}
    assert tracked <= named
    for package in ("auto_LiRPA", "complete_verifier"):
        (line,) = [line for line in section.splitlines() if line.startswith(f"{package}/")]
        rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert rooms <= set(re.findall(r"\w+", line))
