"""The scripts around a stand-in for the tool: how it is called, what a failure leads to, who is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from complete_verifier.config import load_config
from complete_verifier.vnncomp.command import exit_code
from complete_verifier.vnncomp.prepare import simplify
from tests.graph.single import model, node
from tests.support import ROOT
from tests.vnncomp.checkout import SCRIPTS, Checkout, environment

VERDICT = "results.write_text('unsat')"


# -- run_instance.sh --------------------------------------------------------------------------------------------------
def test_one_instance_is_one_command(tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path, VERDICT)
    checkout.results.write_text("sat\nold")
    done = checkout.run("run_instance.sh", *checkout.instance())
    assert (done.returncode, done.stderr, checkout.results.read_text()) == (0, "", "unsat")
    (call,) = checkout.calls()
    root = checkout.root
    assert call.arguments == [
        "--config", str(root / "exp_configs" / "vnncomp23" / "vit.yaml"), "--precompile_jit",
        "--onnx_path", str(root / "onnx" / "net.onnx"), "--vnnlib_path", str(root / "vnnlib" / "prop.vnnlib"),
        "--results_file", str(root / "results.txt"), "--timeout", "30", "--save_adv_example",
    ]  # fmt: skip
    assert call.variables == {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    assert not Path(call.cwd).exists()  # the counterexample's file of its own went to a folder that is gone


def test_an_older_results_file_is_deleted_first(tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path, "assert not results.exists()")
    checkout.results.write_text("unsat")
    checkout.run("run_instance.sh", *checkout.instance())
    assert len(checkout.calls()) == 1 and not checkout.results.exists()


@pytest.mark.parametrize("blank", ["", "  \nunsat"])
def test_a_blank_first_line_is_no_verdict(tmp_path: Path, blank: str) -> None:
    checkout = Checkout.make(tmp_path, f"results.write_text({blank!r}); sys.exit(1)", VERDICT)
    checkout.run("run_instance.sh", *checkout.instance())
    assert len(checkout.calls()) == 2 and checkout.results.read_text() == "unsat"


def test_a_failure_without_a_verdict_is_tried_once_more(tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path, "time.sleep(1.5); sys.exit(1)", VERDICT)
    done = checkout.run("run_instance.sh", *checkout.instance(seconds="30.5"))
    first, second = checkout.calls()
    assert second.arguments == [
        *(word if word != "30.5" else second.value("--timeout") for word in first.arguments),
        "--bound_prop_method", "crown", "--apply_output_constraints_to",
    ]  # fmt: skip
    assert 20 < float(second.value("--timeout")) <= 29.5  # the time left
    assert done.returncode == 0 and checkout.results.read_text() == "unsat"
    config = load_config(second.arguments[2:]).config
    assert config.solver.bound_prop_method == "crown" and config.solver.invprop.apply_output_constraints_to == ()


def test_a_second_failure_is_the_last(tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path, "sys.exit(2)", "os.kill(os.getpid(), signal.SIGKILL)")
    assert checkout.run("run_instance.sh", *checkout.instance()).returncode == 0
    assert len(checkout.calls()) == 2 and not checkout.results.exists()


@pytest.mark.parametrize("order", [f"{VERDICT}; sys.exit(1)", VERDICT, "pass"])
def test_there_is_no_second_try_after_a_verdict_or_success(tmp_path: Path, order: str) -> None:
    checkout = Checkout.make(tmp_path, order, "sys.exit(99)")
    assert checkout.run("run_instance.sh", *checkout.instance()).returncode == 0
    assert len(checkout.calls()) == 1


@pytest.mark.parametrize("last", ["unknown", ""])
def test_a_signal_reaches_the_tool_and_nothing_is_tried_again(tmp_path: Path, last: str) -> None:
    order = f"signal.signal(signal.SIGTERM, lambda *_: (results.write_text({last!r}), sys.exit(1))); time.sleep(60)"
    checkout = Checkout.make(tmp_path, order, VERDICT)
    running = subprocess.Popen(
        checkout.command("run_instance.sh", *checkout.instance()), env=environment(), cwd=checkout.root
    )
    _wait_for(lambda: len(checkout.calls()) == 1)
    time.sleep(0.5)  # until its handler stands
    running.terminate()
    assert running.wait(20) == 0
    assert checkout.results.read_text() == last and len(checkout.calls()) == 1
    assert not _alive(checkout.calls()[0].pid)


def test_a_tool_that_does_not_end_is_killed_and_timed_out(tmp_path: Path) -> None:
    order = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    )
    checkout = Checkout.make(tmp_path, order)
    began = time.monotonic()
    assert checkout.run("run_instance.sh", *checkout.instance(seconds="1")).returncode == 0
    assert time.monotonic() - began < 30
    assert checkout.results.read_text() == "timeout" and len(checkout.calls()) == 1
    assert not _alive(checkout.calls()[0].pid)


def test_an_unknown_category_is_refused(tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path)
    done = checkout.run("run_instance.sh", *checkout.instance(category="no_such"))
    assert done.returncode == 0 and not checkout.results.exists() and checkout.calls() == []
    main = [sys.executable, str(checkout.root / "vnncomp_scripts" / "vnncomp_main.py"), *checkout.instance("x")[1:]]
    done = subprocess.run(main, cwd=checkout.root, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("vnncomp_main.py: x: unknown category; known are ")
    assert len(done.stderr.splitlines()) == 1


# -- vnncomp_main.py --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--DEBUG", ["--eval_adv_example"]),
        ("--NOPGD", ["--pgd_order=skip"]),
        ("--PREPARE", ["--prepare_only"]),
        ("--TRY_CROWN", ["--bound_prop_method", "crown", "--apply_output_constraints_to"]),
    ],
)
def test_flags_of_the_main_script(tmp_path: Path, flag: str, words: list[str]) -> None:
    checkout = Checkout.make(tmp_path, VERDICT)
    assert _main(checkout, flag) == 0
    assert checkout.calls()[0].arguments[-len(words) - 1 :] == ["--save_adv_example", *words]


@pytest.mark.parametrize(("end", "code"), [("sys.exit(0)", 0), ("sys.exit(1)", 2), ("sys.exit(2)", 3)])
def test_the_exit_code_tells_of_failure(tmp_path: Path, end: str, code: int) -> None:
    assert _main(Checkout.make(tmp_path, end)) == code


def test_exit_codes_are_never_zero_by_accident() -> None:
    assert exit_code(0) == 0
    codes = {code: exit_code(code) for code in (*range(-64, 0), *range(1, 256))}
    assert all(code == number % 255 + 1 for number, code in codes.items())
    assert set(codes.values()) <= set(range(1, 256))


# -- prepare_instance.sh ----------------------------------------------------------------------------------------------
def test_preparing_warms_up_and_never_fails(tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path, "sys.exit(1)")
    done = checkout.run("prepare_instance.sh", *checkout.instance()[:4])
    assert done.returncode == 0
    (call,) = checkout.calls()
    assert call.arguments[-1] == "--prepare_only" and call.value("--timeout") == "1"
    assert call.value("--results_file") != str(checkout.results) and not Path(call.value("--results_file")).exists()


def test_a_trial_run_prepares_nothing(tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path, "time.sleep(60)")
    left = _left_behind(checkout)
    done = checkout.run("prepare_instance.sh", *checkout.instance()[:4], ABCROWN_TEST_RUN="1")
    assert done.returncode == 0 and len(checkout.calls()) == 1
    assert _alive(left)
    os.kill(left, signal.SIGKILL)


def test_only_leftovers_of_this_checkout_are_ended(tmp_path: Path) -> None:
    """An orphaned run of another checkout and a stranger's python survive, and so does the script itself."""
    checkout, other = (
        Checkout.make(tmp_path / "a", "time.sleep(60)", "pass"),
        Checkout.make(tmp_path / "b", "time.sleep(60)"),
    )
    left, others = _left_behind(checkout), _left_behind(other)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(checkout.root)])
    try:
        done = checkout.run("prepare_instance.sh", *checkout.instance()[:4], ABCROWN_HARNESS=str(checkout.root))
        assert done.returncode == 0 and f"process {left} of an earlier run was ended" in done.stderr
        _wait_for(lambda: not _alive(left))
        assert len(checkout.calls()) == 2  # the warm-up came after it
        assert _alive(others) and stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        os.kill(others, signal.SIGKILL)


def _left_behind(checkout: Checkout) -> int:
    """The tool of a run whose scripts were killed from outside."""
    running = subprocess.Popen(
        checkout.command("run_instance.sh", *checkout.instance(seconds="50")), env=environment(), cwd=checkout.root
    )
    _wait_for(lambda: len(checkout.calls()) == 1)
    (call,) = checkout.calls()
    parent = int(Path(f"/proc/{call.pid}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (running.pid, parent):
        os.kill(pid, signal.SIGKILL)
    running.wait()
    assert _alive(call.pid)
    return call.pid


@pytest.mark.parametrize("category", ["cgan_2023", "vit_2023"])
def test_networks_of_cgan_are_simplified_in_place(tmp_path: Path, category: str) -> None:
    checkout = Checkout.make(tmp_path)
    network = checkout.root / "net.onnx"
    onnx.save(_with_constants(), network)
    before = network.read_bytes()
    for _ in range(2):  # the second time there is nothing to do
        done = checkout.run("prepare_instance.sh", "v1", category, "net.onnx", "p.vnnlib", ABCROWN_TEST_RUN="1")
        assert done.returncode == 0, done.stderr
    kept = checkout.root / "net.onnx.original"
    if category == "vit_2023":
        assert network.read_bytes() == before and not kept.exists()
        return
    assert kept.read_bytes() == before
    assert [one.op_type for one in onnx.load(network).graph.node] == ["Add"]


def test_a_network_that_cannot_be_simplified_stays(tmp_path: Path) -> None:
    network = tmp_path / "net.onnx"
    network.write_bytes(b"\x08\x07nonsense")
    assert simplify(network).startswith("left as it is")
    assert network.read_bytes() == b"\x08\x07nonsense" and list(tmp_path.iterdir()) == [network]


def _with_constants() -> onnx.ModelProto:
    """x + (a + a), the sum of constants left to the reader."""
    nodes = [node("Add", "a a", "b"), node("Add", "x b", "y")]
    return model(nodes, ["N", 3], {"a": np.ones(3, dtype=np.float32)})


# -- installation -----------------------------------------------------------------------------------------------------
_PYTHON = """#!/bin/sh
echo "$*" >> "$(dirname "$0")/calls"
case "$*" in *"import torch"*) exit {torch};; esac
exit 0
"""


@pytest.mark.parametrize("torch", [True, False])
def test_installation_keeps_a_torch_that_is_there(tmp_path: Path, torch: bool) -> None:
    """Which commands are run; the installation itself is what `make` does in every fresh checkout."""
    python = tmp_path / "python"
    python.write_text(_PYTHON.format(torch=0 if torch else 1))
    python.chmod(0o755)
    done = Checkout.make(tmp_path).run("install_tool.sh", "v1", VNNCOMP_PYTHON_PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    (pip,) = [call for call in calls if call.startswith("-m pip install")]
    assert pip.endswith(f"--editable {tmp_path / 'check out'}")
    assert ("--constraint" in pip) is not torch
    assert calls[-1].endswith("abcrown.py")


@pytest.mark.parametrize("script", ["install_tool.sh", "prepare_instance.sh", "run_instance.sh"])
@pytest.mark.parametrize("version", ["v2", ""])
def test_another_version_of_the_interface_is_refused(tmp_path: Path, script: str, version: str) -> None:
    checkout = Checkout.make(tmp_path)
    done = checkout.run(script, *[version, *checkout.instance()[1:]][: 6 if "run" in script else 4])
    assert done.returncode == 1 and "only v1 is known" in done.stderr
    assert checkout.calls() == []


def test_no_licence_is_asked_for(tmp_path: Path) -> None:
    assert Checkout.make(tmp_path).run("post_install_tool.sh").returncode == 0


def test_the_description_has_every_key() -> None:
    described = yaml.safe_load((SCRIPTS / "config.yaml").read_text())
    assert set(described) == {
        "name", "ami", "scripts_dir", "manual_installation_step", "run_installation_script_as_root",
        "run_post_installation_script_as_root", "run_toolkit_as_root", "description",
    }  # fmt: skip
    assert (ROOT / described["scripts_dir"]) == SCRIPTS


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.name == "environment.sh" or os.access(script, os.X_OK)


# -- helpers ----------------------------------------------------------------------------------------------------------
def _main(checkout: Checkout, *flags: str) -> int:
    script = checkout.root / "vnncomp_scripts" / "vnncomp_main.py"
    return subprocess.run(
        [sys.executable, str(script), *checkout.instance()[1:], *flags], cwd=checkout.root, check=False
    ).returncode


def _wait_for(condition: object, seconds: float = 30.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
