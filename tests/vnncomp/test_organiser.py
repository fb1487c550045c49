"""The organiser's part: prepare and run instances through the scripts, compare verdicts, replay counterexamples."""

from __future__ import annotations

import csv
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.replay import fault
from complete_verifier.vnncomp.categories import by_name
from tests.end_to_end.runs import hopeless
from tests.support import ROOT, shared_dir
from tests.vnncomp.checkout import environment

LATE_S = 2.0
_SHORT_S = 60.0  # a limit for what takes a few seconds


@dataclass(frozen=True)
class Instance:
    """One row of expected.csv."""

    family: str
    onnx: str
    vnnlib: str
    expected: str
    peer_seconds: float

    @property
    def paths(self) -> tuple[Path, Path]:
        folder = shared_dir("benchmarks", self.family)
        return folder / self.onnx, folder / self.vnnlib


def _rows() -> list[Instance]:
    path = ROOT.parent / "shared" / "benchmarks" / "expected.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [
            Instance(row["family"], row["onnx"], row["vnnlib"], row["expected"], float(row["abcrown_seconds"] or 1e9))
            for row in csv.DictReader(file)
            if row["family"] != "vit"
        ]


def _easiest(family: str, expected: str) -> Instance:
    fitting = [row for row in _rows() if (row.family, row.expected) == (family, expected)]
    if not fitting:
        pytest.skip(f"no {expected} instance of {family} beside the checkout")
    return min(fitting, key=lambda row: row.peer_seconds)


@dataclass(frozen=True)
class Ended:
    """What the organiser sees of one instance."""

    code: int
    results: str
    seconds: float
    said: str

    @property
    def verdict(self) -> str:
        return self.results.partition("\n")[0]


@pytest.fixture
def organiser(tmp_path: Path) -> Callable[[str, Path, Path, float], Ended]:
    """Prepares (without the warm-up) and runs one instance. The checkout is a view of this one under another path, so
    that nothing here can end a process that runs from this one."""
    root = tmp_path / "tool"
    root.mkdir()
    shutil.copytree(ROOT / "vnncomp_scripts", root / "vnncomp_scripts")
    for name in ("auto_LiRPA", "complete_verifier", "exp_configs"):
        (root / name).symlink_to(ROOT / name)

    def script(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(root / "vnncomp_scripts" / name), "v1", *arguments],
            env=environment(**variables), cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def run(category: str, network: Path, specification: Path, limit: float) -> Ended:
        results = tmp_path / "results.txt"
        results.write_text("sat")  # of an earlier instance
        prepared = script("prepare_instance.sh", category, str(network), str(specification), ABCROWN_TEST_RUN="1")
        assert (prepared.returncode, prepared.stderr) == (0, "")
        began = time.monotonic()
        done = script("run_instance.sh", category, str(network), str(specification), str(results), f"{limit:g}")
        seconds = time.monotonic() - began
        return Ended(done.returncode, results.read_text() if results.exists() else "", seconds, done.stderr)

    return run


def _check(ended: Ended, instance: Instance, limit: float) -> None:
    network, specification = instance.paths
    assert ended.code == 0
    if ended.verdict == "sat":
        assert fault(ended.results, network, specification) is None
    else:
        assert ended.results in ("unsat", "timeout", "unknown"), ended.said
    assert {ended.verdict, instance.expected} != {"sat", "unsat"}
    assert ended.seconds < limit + LATE_S


@pytest.mark.parametrize("expected", ["sat", "unsat"])
@pytest.mark.parametrize("family", ["mnist_fc", "collins_rul_cnn"])
def test_easy_instances_are_decided(
    organiser: Callable[[str, Path, Path, float], Ended], family: str, expected: str
) -> None:
    instance = _easiest(family, expected)
    ended = organiser(family, *instance.paths, _SHORT_S)
    _check(ended, instance, _SHORT_S)
    assert ended.verdict == expected, ended.said


@pytest.mark.soak
@pytest.mark.parametrize(
    "instance", _rows(), ids=lambda row: f"{row.family}-{Path(row.onnx).stem}-{Path(row.vnnlib).stem}"
)
def test_no_instance_is_wrong_or_late(organiser: Callable[[str, Path, Path, float], Ended], instance: Instance) -> None:
    """Every instance of every family but the transformers, ten seconds each: a third of an hour."""
    _check(organiser(instance.family, *instance.paths, 10.0), instance, 10.0)


def test_a_limit_that_is_too_short_is_kept(
    organiser: Callable[[str, Path, Path, float], Ended], tmp_path: Path
) -> None:
    network, specification = hopeless(tmp_path)
    ended = organiser("soundnessbench", Path(network), Path(specification), 4.0)
    assert ended.code == 0 and ended.verdict in ("timeout", "sat"), ended.said
    if ended.verdict == "sat":  # a fast machine's attack finds one now and then
        assert fault(ended.results, Path(network), Path(specification)) is None
    assert ended.seconds < 4.0 + LATE_S + 2.0  # two shells and an interpreter start first, on a busy machine


def test_bad_input_leaves_no_verdict_and_ends_in_time(
    organiser: Callable[[str, Path, Path, float], Ended], tmp_path: Path
) -> None:
    (tmp_path / "net.onnx").write_bytes(b"nonsense")
    (tmp_path / "prop.vnnlib").write_text("(assert")
    ended = organiser("vit_2023", tmp_path / "net.onnx", tmp_path / "prop.vnnlib", 120.0)
    assert (ended.code, ended.results) == (0, "")
    assert "once more with plain CROWN bounds" in ended.said and "Traceback" not in ended.said


def test_every_family_beside_the_checkout_is_a_category() -> None:
    assert {row.family for row in _rows()} <= set(by_name())
