"""Broken input of every kind: exit code 2, one line on standard error that names place and mend, no verdict."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from complete_verifier.__main__ import main
from tests.end_to_end.runs import COMMON, mlp_model, property_text, write
from tests.graph.single import model, node
from tests.nets import dense_layers
from tests.support import ROOT

LAYERS = dense_layers([3, 4, 2], seed=0)
LOWER, UPPER = -np.ones(3), np.ones(3)
TEXT = property_text(LOWER, UPPER, 2, [[([1.0, 0.0], -99.0)]])

Files = tuple[str, str]
Case = Callable[[Path], tuple[str, ...]]  # writes what is broken; returns the command line


def good(folder: Path) -> Files:
    return write(folder, mlp_model(LAYERS), TEXT)


def words(files: Files, *more: str) -> tuple[str, ...]:
    return ("--onnx_path", files[0], "--vnnlib_path", files[1], *more)


# -- the network ------------------------------------------------------------------------------------------------------
def network(change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Case:
    return lambda folder: words(write(folder, change(mlp_model(LAYERS)), TEXT))


def weights(value: float) -> Case:
    def change(proto: onnx.ModelProto) -> onnx.ModelProto:
        first = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
        first.flat[1] = value
        proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(first, proto.graph.initializer[0].name))
        return proto

    return network(change)


def operator(name: str, **attributes: object) -> Case:
    def change(proto: onnx.ModelProto) -> onnx.ModelProto:
        return model([node(name, "x", **attributes)], ["N", 3])

    return network(change)


def bytes_of_network(change: Callable[[bytes], bytes], name: str = "net.onnx") -> Case:
    def case(folder: Path) -> tuple[str, ...]:
        files = good(folder)
        content = change(Path(files[0]).read_bytes())
        (folder / name).write_bytes(content)
        return words((str(folder / name), files[1]))

    return case


# -- the property -----------------------------------------------------------------------------------------------------
def text(change: Callable[[str], str]) -> Case:
    return lambda folder: words(write(folder, mlp_model(LAYERS), change(TEXT)))


def bytes_of_property(content: bytes, name: str) -> Case:
    def case(folder: Path) -> tuple[str, ...]:
        files = good(folder)
        (folder / name).write_bytes(content)
        return words((files[0], str(folder / name)))

    return case


# -- settings ---------------------------------------------------------------------------------------------------------
def flags(*more: str) -> Case:
    return lambda folder: words(good(folder), *more)


def yaml(content: str) -> Case:
    def case(folder: Path) -> tuple[str, ...]:
        (folder / "c.yaml").write_text(content)
        return words(good(folder), "--config", str(folder / "c.yaml"))

    return case


def rows(content: str, *more: str) -> Case:
    def case(folder: Path) -> tuple[str, ...]:
        good(folder)
        (folder / "list.csv").write_text(content)
        (folder / "config.yaml").write_text("")
        return ("--root_path", str(folder), "--csv_name", "list.csv", *more)

    return case


CASES: dict[str, tuple[Case, tuple[str, ...]]] = {
    # what is broken: how, and words that the line must hold
    "network missing": (lambda d: words((str(d / "no.onnx"), good(d)[1])), ("no.onnx", "no such file")),
    "network a folder": (lambda d: words((str(d), good(d)[1])), ("cannot be read",)),
    "network no ONNX": (bytes_of_network(lambda b: b"hello, I am a text"), ("net.onnx", "export")),
    "network empty": (bytes_of_network(lambda b: b""), ("net.onnx", "no network")),
    "network truncated": (bytes_of_network(lambda b: b[: len(b) // 2]), ("net.onnx", "truncated")),
    "network gzip broken": (
        bytes_of_network(lambda b: gzip.compress(b)[:-30], "net.onnx.gz"),
        ("net.onnx.gz", "broken gzip"),
    ),  # fmt: skip
    "network gzip by name only": (bytes_of_network(lambda b: b, "net.onnx.gz"), ("net.onnx.gz", "gzip")),
    "weight NaN": (weights(float("nan")), ("net.onnx", "w0", "NaN")),
    "weight infinite": (weights(float("inf")), ("net.onnx", "w0")),
    "operator unknown": (operator("Erf"), ("net.onnx", "Erf", "not supported")),
    "operator invented": (operator("Relux"), ("net.onnx", "Relux", "nearest", "Relu")),
    "output without input": (
        network(lambda p: model([node("Identity", "c")], ["N", 3], {"c": np.zeros((1, 2), np.float32)})),
        ("net.onnx", "input"),
    ),
    "input of whole numbers": (
        network(lambda p: model([node("Relu", "x")], ["N", 3], elem=onnx.TensorProto.INT64)),
        ("net.onnx", "type"),
    ),  # fmt: skip
    "two outputs": (
        network(lambda p: (p.graph.output.append(onnx.helper.make_tensor_value_info("z0", 1, None)), p)[1]),
        ("net.onnx", "2 outputs"),
    ),
    "property missing": (lambda d: words((good(d)[0], str(d / "no.vnnlib"))), ("no.vnnlib",)),
    "property of a larger network": (text(lambda t: "(declare-const X_3 Real)\n" + t), ("prop.vnnlib", "inputs")),
    "property with more outputs": (text(lambda t: "(declare-const Y_2 Real)\n" + t), ("prop.vnnlib", "outputs")),
    "box upside down": (text(lambda t: t.replace("(<= X_1 1.0", "(<= X_1 -2.0")), ("prop.vnnlib", "X_1", "empty")),
    "box open": (
        text(lambda t: re.sub(r"\(assert \(<= X_2 [^)]*\)\)\n", "", t)),
        ("prop.vnnlib", "X_2", "upper bound"),
    ),  # fmt: skip
    "box too large for float32": (
        text(lambda t: t.replace("(<= X_2 1.000000000)", "(<= X_2 1e300)")),
        ("prop.vnnlib", "X_2", "double_fp"),
    ),  # fmt: skip
    "parenthesis missing": (text(lambda t: t.rstrip()[:-1]), ("prop.vnnlib", "line")),
    "no output in the property": (text(lambda t: t[: t.index("(assert (or")]), ("prop.vnnlib", "output")),
    "VNN-LIB 2": (
        text(lambda t: "(vnnlib-version <2.0>)\n(declare-network N)\n" + t),
        ("prop.vnnlib", "2.0", "not supported"),
    ),  # fmt: skip
    "property empty": (bytes_of_property(b"", "empty.vnnlib"), ("empty.vnnlib",)),
    "property binary": (bytes_of_property(bytes(range(256)), "binary.vnnlib"), ("binary.vnnlib",)),
    "property gzip broken": (
        bytes_of_property(gzip.compress(TEXT.encode())[:-20], "p.vnnlib.gz"),
        ("p.vnnlib.gz",),
    ),  # fmt: skip
    "nothing to verify": (lambda d: ("--timeout", "5"), ("--onnx_path", "--csv_name")),
    "only a network": (lambda d: ("--onnx_path", good(d)[0]), ("vnnlib_path", "missing")),
    "only a property": (lambda d: ("--vnnlib_path", good(d)[1]), ("onnx_path", "missing")),
    "flag unknown": (flags("--tmeout", "3"), ("--tmeout", "--timeout")),
    "flag without its value": (flags("--timeout"), ("--timeout",)),
    "value of another type": (flags("--batch_size", "many"), ("--batch_size", "integer")),
    "timeout negative": (flags("--timeout", "-1"), ("timeout", "> 0")),
    "YAML missing": (flags("--config", "no.yaml"), ("no.yaml", "no such file")),
    "YAML no YAML": (yaml("general: [1, 2"), ("c.yaml", "line")),
    "YAML key unknown": (yaml("bab: {timeuot: 3}"), ("c.yaml", "bab.timeuot", "timeout")),
    "YAML value unknown": (yaml("bab: {branching: {reduceop: median}}"), ("c.yaml", "reduceop", "mean")),
    "setting that changes the question": (flags("--epsilon", "0.1"), ("specification.epsilon", "of a data set")),
    "mesh for ranks that are not there": (
        yaml("parallel: {mode: fsdp, mesh: {weights: 2}}"),
        ("parallel.mesh", "--nproc"),
    ),
    "planning without a plan": (flags("--world_size", "8"), ("--world_size", "--plan")),
    "results file a folder": (lambda d: words(good(d), "--results_file", str(d)), ("results_file", "folder")),
    "results file below a file": (
        lambda d: words(good(d), "--results_file", good(d)[1] + "/out.txt"),
        ("results_file", "cannot be written"),
    ),  # fmt: skip
    "statistics below a file": (
        lambda d: words(good(d), "--stats_file", good(d)[1] + "/s.json"),
        ("stats_file", "cannot be written"),
    ),  # fmt: skip
    "list missing": (lambda d: rows("")(d)[:2] + ("--csv_name", "no.csv"), ("no.csv", "root_path")),
    "list with two columns": (rows("net.onnx,prop.vnnlib\n"), ("list.csv", "line 1", "onnx,vnnlib,timeout")),
    "list with a wrong timeout": (rows("net.onnx,prop.vnnlib,soon\n"), ("list.csv", "line 1", "soon")),
    "list shorter than start": (rows("net.onnx,prop.vnnlib,9\n", "--start", "4"), ("data.start", "1 rows")),
    "list without the row": (rows("net.onnx,prop.vnnlib,9\n", "--select_instance", "7"), ("select_instance", "1 rows")),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_code_2(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, told = CASES[name]
    monkeypatch.chdir(tmp_path)
    line = case(tmp_path)
    code = main([*line, *COMMON, "--pgd_order", "skip"])
    printed = capfd.readouterr()
    assert code == 2
    assert printed.err.endswith("\n") and printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("error: ")
    for word in told:
        assert word in printed.err
    assert "Result:" not in printed.out
    assert not (tmp_path / "out.txt").exists()


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 25


def test_a_stale_verdict_does_not_survive_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.txt").write_text("unsat")
    assert main([*words((good(tmp_path)[0], "no.vnnlib")), *COMMON]) == 2
    assert not (tmp_path / "out.txt").exists()


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words((str(tmp_path / "no.onnx"), good(tmp_path)[1])), *COMMON, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif("CUDA_VISIBLE_DEVICES" in os.environ, reason="chooses its devices itself")
def test_cuda_without_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for by name it is an error; as the unset default the CPU computes, which one line says."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    files, results = good(tmp_path), ("--results_file", str(tmp_path / "r.txt"))
    assert main([*words(files), "--device", "cuda", *results]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert main([*words(files), "--parallel_threads", "1", "--pgd_order", "skip", *results]) == 0
    assert capsys.readouterr().out.count("the CPU computes") == 1


@pytest.mark.parametrize("entry", [["-m", "complete_verifier"], ["complete_verifier/abcrown.py"]])
def test_as_a_process(tmp_path: Path, entry: list[str]) -> None:
    line = words((good(tmp_path)[0], "no.vnnlib"))
    done = subprocess.run(
        [sys.executable, *entry, *line, *COMMON], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "no.vnnlib" in done.stderr
