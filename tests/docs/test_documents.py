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
from complete_verifier.driver.checks import check_asked
from complete_verifier.driver.sweep_options import COMMAND, read_sweep
from tests.support import ROOT

PAGES = tuple(sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
DOCUMENTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", *PAGES)
WITH_COMMANDS = ("README.md", "docs/checkpoints.md", "docs/mip.md", "docs/results.md", "docs/sweeps.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def shell(text: str) -> list[str]:
    """The fenced blocks of shell commands."""
    return [*blocks(text, "sh"), *blocks(text, "bash")]


def links(document: str) -> list[str]:
    """Where a document's links within the repository lead, as written."""
    return re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / document).read_text(encoding="utf-8"))


def commands(text: str) -> list[list[str]]:
    """The arguments of every `abcrown` command in the shell blocks."""
    found = []
    for block in shell(text):
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


def with_files(words: list[str], folder: Path) -> list[str]:
    """The words with the reader's own settings and list, which are not part of the checkout, put in their place."""
    own = {"--config": ("settings.yaml", "{}\n"), "--csv": ("list.csv", "net.onnx,property.vnnlib,60\n")}
    found = list(words)
    for flag, (name, content) in own.items():
        at = found.index(flag) + 1 if flag in found else 0
        if at and not Path(found[at]).is_file():
            found[at] = str(folder / name)
            (folder / name).write_text(content, encoding="utf-8")
    return found


@pytest.mark.parametrize("document", WITH_COMMANDS)
def test_commands_are_accepted(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags exist and what they ask for acts; files of the checkout that are named exist."""
    monkeypatch.chdir(ROOT)
    found = commands((ROOT / document).read_text(encoding="utf-8"))
    assert found
    for words in found:
        given = with_files(words, tmp_path)
        loaded = read_sweep(given[1:]).loaded if given[0] == COMMAND else load_config(given)
        assert check_supported(loaded) == []
        check_asked(loaded)
        assert all(Path(word).is_file() for word in words if word.startswith(("quickstart/", "exp_configs/")))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_scripts_in_commands_exist(document: str) -> None:
    text = "".join(shell((ROOT / document).read_text(encoding="utf-8")))
    named = re.findall(r"(?<![\w/])(?:\w+/)+\w+\.(?:py|sh|yaml)", text)
    assert [name for name in named if not (ROOT / name).is_file() and not name.startswith("out/")] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(document: str) -> None:
    folder = (ROOT / document).parent
    assert [link for link in links(document) if not (folder / link).exists()] == []


def test_every_page_is_linked_from_the_start() -> None:
    """From README or the architecture page, which are where readers begin."""
    linked = {
        (ROOT / document).parent / link
        for document in ("README.md", "docs/architecture.md")
        for link in links(document)
    }
    assert {path.resolve() for path in (ROOT / "docs").glob("*.md")} <= {path.resolve() for path in linked}


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "CHANGELOG.md"])  # it names what is gone
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
    for package in ("auto_LiRPA", "complete_verifier", "abcrown"):
        (row,) = re.findall(rf"^{package}/.*(?:\n .*)*", section, flags=re.MULTILINE)
        rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert rooms <= set(re.findall(r"\w+", row))
