"""Habits that a reader counts on: who prints, who reads the environment, who knows the ranks, what files tell."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.architecture.rules import (
    distributed_faults,
    environment_faults,
    machine_path_faults,
    package_faults,
    print_faults,
)
from tests.architecture.source import SourceFile, sources
from tests.support import ROOT

Rule = Callable[[Iterable[SourceFile]], Iterator[str]]


@pytest.mark.parametrize("rule", [distributed_faults, environment_faults, package_faults, print_faults])
def test_the_packages_keep(rule: Rule) -> None:
    faults = list(rule(sources(ROOT)))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (distributed_faults, "auto_LiRPA/operators/x.py", "import torch.distributed as dist"),
        (distributed_faults, "auto_LiRPA/bounds/x.py", "from torch import distributed"),
        (distributed_faults, "complete_verifier/bab/x.py", "from torch.distributed.device_mesh import DeviceMesh"),
        (distributed_faults, "auto_LiRPA/bounds/x.py", "y = torch.distributed.get_rank()"),
        (environment_faults, "auto_LiRPA/parallel/collectives.py", "rank = os.environ['RANK']"),
        (environment_faults, "auto_LiRPA/api.py", "debug = os.getenv('DEBUG')"),
        (environment_faults, "auto_LiRPA/api.py", "from os import environ"),
        (package_faults, "auto_LiRPA/graph/passes/fold.py", ""),
        (print_faults, "auto_LiRPA/api.py", "print('hello')  # noqa: T201"),
        (print_faults, "complete_verifier/bab/loop.py", "def f():\n    print('hello')"),
    ],
)
def test_a_planted_fault_is_seen(tmp_path: Path, rule: Rule, name: str, text: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    (fault,) = rule(sources(tmp_path))
    assert fault.startswith(name if rule is not package_faults else str(Path(name).parent))


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (distributed_faults, "auto_LiRPA/parallel/collectives.py", "import torch.distributed as dist"),
        (environment_faults, "auto_LiRPA/parallel/context.py", "rank = os.environ['RANK']"),
        (environment_faults, "complete_verifier/driver/cli.py", "root = os.environ['ABCROWN_VNNCOMP_ROOT']"),
        (print_faults, "complete_verifier/driver/cli.py", "print('usage')"),
    ],
)
def test_the_one_place_for_it_is_allowed(tmp_path: Path, rule: Rule, name: str, text: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert list(rule(sources(tmp_path))) == []


def _files_of_the_project() -> list[Path]:
    """Tracked files, and new ones that git does not ignore."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the project is not known")
    listing = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [Path(name) for name in names if name and (ROOT / name).is_file()]


def test_no_file_mentions_a_machine() -> None:
    paths = _files_of_the_project()
    assert Path("pyproject.toml") in paths
    faults = list(machine_path_faults(ROOT, paths))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("folder", ["work", "root", "home", "Users"])
def test_a_machine_path_is_seen(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a.bin").write_bytes(b"\x00\x01\n2/" + folder.encode() + b"/someone/model.py\xff")
    (tmp_path / "b.md").write_text(f"../{folder}/x and a/{folder}/x are relative paths")
    (tmp_path / "c.md").write_text(f"see\n`/{folder}/someone`")
    faults = machine_path_faults(tmp_path, [Path("a.bin"), Path("b.md"), Path("c.md")])
    assert [fault.split(": ")[0] for fault in faults] == ["a.bin:2", "c.md:2"]
