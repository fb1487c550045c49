"""`ABCROWN` and `VNNCompBenchmark`: the command line and its lists from Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from abcrown import ABCROWN, VNNCompBenchmark
from abcrown.command import _words
from auto_LiRPA.errors import ConfigError, ModelError
from tests.support import ROOT

DIGITS = ROOT / "quickstart" / "digits.onnx"
ROBUST = ROOT / "quickstart" / "robust.vnnlib"
COMMON: dict[str, Any] = {"device": "cpu", "parallel_threads": 1, "quiet": True, "pgd_order": "after"}


def test_keywords_become_flags() -> None:
    assert _words("batch_size", 512) == ["--batch_size=512"]
    assert _words("select_instance", [1, 3]) == ["--select_instance", "1", "3"]
    assert _words("save_adv_example", True) == ["--save_adv_example"]
    assert _words("incomplete", False) == ["--no_incomplete"]
    # upstream has no flag for these two; the option says the same
    assert _words("save_adv_example", False) == ["--set", "general.save_adv_example=false"]
    assert _words("sparse_alpha", True) == ["--set", "general.sparse_alpha=true"]
    with pytest.raises(ConfigError, match="--nonsense: unknown flag"):
        ABCROWN(nonsense=True)


def test_one_instance_leaves_the_commands_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "out.txt"
    words = ["--onnx_path", str(DIGITS), "--vnnlib_path", str(ROBUST)]
    assert ABCROWN(words, results_file=results, timeout=60, **COMMON).main() == {"safe-incomplete": [0]}
    assert results.read_text() == "unsat"
    assert "Result: unsat" in capsys.readouterr().out


def test_known_bounds_are_used(tmp_path: Path) -> None:
    run = ABCROWN(onnx_path=DIGITS, vnnlib_path=ROBUST, results_file=tmp_path / "out.txt", **COMMON)
    with pytest.raises(ConfigError, match="interm_bounds: no node"):
        run.main(interm_bounds={"nowhere": (None, None)})  # type: ignore[dict-item]


def test_bad_input_is_an_exception_not_an_exit(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        ABCROWN(onnx_path="no.onnx", vnnlib_path=ROBUST, results_file=tmp_path / "out.txt", **COMMON).main()
    with pytest.raises(ConfigError, match="nothing to verify"):
        ABCROWN([]).main()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A benchmark `pair` below a root, and its configuration."""
    below = tmp_path / "all" / "pair"
    below.mkdir(parents=True)
    (below / "instances.csv").write_text(f"{DIGITS},{ROBUST},30\n{DIGITS},no.vnnlib,30\n")
    general = "{root_path: ../elsewhere/pair, csv_name: instances.csv, device: cpu}"
    settings = f"general: {general}\nattack: {{pgd_order: after}}\n"
    (tmp_path / "pair.yaml").write_text(settings)
    return tmp_path


def test_a_list(folder: Path) -> None:
    summary = ABCROWN(
        ["--config", str(folder / "pair.yaml")], root_path=folder / "all" / "pair", results_file=folder / "r.csv",
        quiet=True,
    ).main()  # fmt: skip
    assert summary == {"safe-incomplete": [0], "unknown-error": [1]}


@pytest.mark.parametrize("given", ["folder", "root", "environment"])
def test_a_benchmark(folder: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if given == "environment":
        monkeypatch.setenv("ABCROWN_VNNCOMP_ROOT", str(folder / "all"))
    root = {"folder": folder / "all" / "pair", "root": folder / "all", "environment": None}[given]
    benchmark = VNNCompBenchmark(folder / "pair.yaml", root)
    assert len(benchmark) == 2 and benchmark.instances[0].timeout_s == 30
    result = benchmark.run_specific_instance(0)
    assert result.verdict == "unsat" and result.stats["timeout_s"] == 30
    with pytest.raises(ConfigError, match="instance 2: instances.csv has 2 instances"):
        benchmark.run_specific_instance(2)


def test_a_benchmark_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        VNNCompBenchmark(folder / "pair.yaml")


def test_all_instances(folder: Path) -> None:
    (folder / "all" / "pair" / "instances.csv").write_text(f"{DIGITS},{ROBUST},30\n" * 2)
    results = VNNCompBenchmark(folder / "pair.yaml", folder / "all").run_all_instances()
    assert {index: result.success for index, result in results.items()} == {0: True, 1: True}


def test_the_scripts_folder_on_the_path_does_not_hide_the_package(tmp_path: Path) -> None:
    """Users of upstream put complete_verifier/ on the path, where a file abcrown.py lies (here: in a small tree)."""
    tool, package = tmp_path / "complete_verifier", tmp_path / "abcrown"
    for folder in (tool, package):
        folder.mkdir()
    shutil.copy(ROOT / "complete_verifier" / "abcrown.py", tool)
    (package / "__init__.py").write_text("from abcrown.command import ABCROWN\n")
    (package / "command.py").write_text("class ABCROWN: ...\n")
    code = "import abcrown; from abcrown import ABCROWN; print(abcrown.__file__, ABCROWN.__module__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=tool, check=False,
        env={"PYTHONPATH": str(tool), "PATH": ""},
    )  # fmt: skip
    assert done.stdout.split() == [str(package / "__init__.py"), "abcrown.command"], done.stderr
