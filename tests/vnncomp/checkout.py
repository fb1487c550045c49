"""A copy of the scripts with a stand-in for the tool, which notes how it is called and does as the test says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

SCRIPTS = ROOT / "vnncomp_scripts"

# Each call takes the next line of `orders`: Python statements with the results file in `results`.
_STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
here = Path(__file__).resolve().parent.parent
arguments = sys.argv[1:]
results = Path(arguments[arguments.index("--results_file") + 1])
with open(here / "calls.jsonl", "a") as file:
    print(json.dumps({"arguments": arguments, "pid": os.getpid(), "cwd": os.getcwd(),
                      "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
                      "PYTHONPATH": os.environ.get("PYTHONPATH")}), file=file)
calls = len((here / "calls.jsonl").read_text().splitlines())
exec((here / "orders").read_text().splitlines()[calls - 1])
"""


@dataclass(frozen=True)
class Call:
    """How the stand-in was called."""

    arguments: list[str]
    pid: int
    cwd: str
    variables: dict[str, str]

    def value(self, flag: str) -> str:
        return self.arguments[self.arguments.index(flag) + 1]


@dataclass(frozen=True)
class Checkout:
    """The copy; ``root`` is its top folder."""

    root: Path

    @classmethod
    def make(cls, folder: Path, *orders: str) -> Checkout:
        root = folder / "check out"  # the blank is meant: paths of organisers may have one
        shutil.copytree(SCRIPTS, root / "vnncomp_scripts", ignore=shutil.ignore_patterns("__pycache__"))
        tool = root / "complete_verifier"
        shutil.copytree(
            ROOT / "complete_verifier" / "vnncomp", tool / "vnncomp", ignore=shutil.ignore_patterns("__pycache__")
        )
        (tool / "__init__.py").touch()
        (tool / "abcrown.py").write_text(_STAND_IN)
        (root / "orders").write_text("\n".join(orders) + "\n")
        return cls(root)

    @property
    def results(self) -> Path:
        return self.root / "results.txt"

    def calls(self) -> list[Call]:
        path = self.root / "calls.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [
            Call(record.pop("arguments"), record.pop("pid"), record.pop("cwd"), variables=record) for record in records
        ]

    def command(self, script: str, *arguments: str) -> list[str]:
        return ["bash", str(self.root / "vnncomp_scripts" / script), *arguments]

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(script, *arguments), env=environment(**variables), cwd=self.root, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip

    def instance(self, category: str = "vit", seconds: str = "30") -> list[str]:
        """Arguments of run_instance.sh; the paths are relative to the current folder."""
        return ["v1", category, "onnx/net.onnx", "vnnlib/prop.vnnlib", "results.txt", seconds]


def environment(**variables: str) -> dict[str, str]:
    """This process's, without what would steer the scripts, with this interpreter."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ABCROWN_", "VNNCOMP_"))}
    return inherited | {"VNNCOMP_PYTHON_PATH": str(Path(sys.executable).parent)} | variables
