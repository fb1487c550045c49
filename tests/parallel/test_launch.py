"""Starting several ranks: by `abcrown --nproc`, by `torchrun`, on two machines, and anew after one was lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from complete_verifier.__main__ import main
from tests.parallel.commands import Act, Command, Ended, run_commands
from tests.parallel.launching import free_port, once, run_tree, torchrun
from tests.parallel.problems import COMMON, Problems
from tests.support import ROOT

SCRIPT = str(ROOT / "complete_verifier" / "abcrown.py")
Runs = dict[str, Ended]


def told(run: Ended) -> str:
    return f"{run.code} after {run.seconds:.1f} s\n{run.err}\n{run.out[-3000:]}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Problems, Runs]:
    """All commands of this file that need no network of their own, run once."""

    def make() -> tuple[Problems, Runs]:
        files = Problems.make(tmp_path_factory.mktemp("launch"))
        port = str(free_port())

        def node(number: int, *more: str, name: str = "nodes", file: tuple[str, str] | None = None) -> Command:
            where = ("--nnodes", "2", "--node-rank", str(number), "--master_addr", "127.0.0.1", "--master_port", port)
            return Command(files.words(f"{name}{number}", "--nproc", "1", *where, *more, files=file))

        stats = ("--stats_file", str(files.folder / "out" / "stats.json"))
        restart = ("--set", "bab.checkpoint=0.05", "--batch_size", "8", "--no_auto_enlarge_batch_size")
        kill = (Act("BaB round", signal.SIGKILL, rank=1, wait_s=0.0),)
        found = {
            "one": Command(files.words("one", "--nproc", "1")),
            "two": Command(files.words("two", "--nproc", "2", *stats), folder="/"),
            "three": Command(files.words("three", "--nproc", "3", "--quiet")),
            "agent": Command(ranks=(files.words("agent"),) * 3),
            "node 0": node(0),
            "node 1": node(1),
            "restart": Command(
                files.words(
                    "restart", "--nproc", "2", "--max-restarts", "1", *restart,
                    "--checkpoint", str(files.folder / "out" / "kept"), files=files.searched,
                ),
                kill,
            ),
            "agent restarts": Command(
                ranks=(
                    files.words(
                        "restart2", *restart, "--checkpoint", str(files.folder / "out" / "kept2"), files=files.searched
                    ),
                )
                * 2,
                acts=kill,
                restarts=1,
            ),
        }  # fmt: skip
        return files, dict(zip(found, run_commands(list(found.values())), strict=True))

    return once(tmp_path_factory, "launch", make)


@pytest.mark.parametrize("name", ["one", "two", "three", "agent", "node 0"])
def test_the_first_rank_speaks_and_writes_for_all(runs: tuple[Problems, Runs], name: str) -> None:
    files, found = runs
    run = found[name]
    assert run.code == 0 and run.lines == [] and run.left == [], told(run)
    assert run.out.count("Result: unsat") == 1, told(run)
    results = files.results({"node 0": "nodes0"}.get(name, name))
    assert results.read_text() == files.results("one").read_text()
    assert run.out.startswith("Configurations:") == (name != "three"), told(run)  # --quiet


def test_ranks_of_other_machines_say_and_write_nothing(runs: tuple[Problems, Runs]) -> None:
    files, found = runs
    run = found["node 1"]
    assert run.code == 0 and run.lines == [] and run.out == "" and run.left == [], told(run)
    assert not files.results("nodes1").exists()


def test_statistics_tell_of_every_rank(runs: tuple[Problems, Runs]) -> None:
    statistics = json.loads((runs[0].folder / "out" / "stats.json").read_text())
    assert statistics["parallel"]["world_size"] == 2
    assert [rank["rank"] for rank in statistics["ranks"]] == [0, 1]


@pytest.mark.parametrize("name", ["restart", "agent restarts"])
def test_ranks_that_are_started_anew_go_on_from_the_last_checkpoint(runs: tuple[Problems, Runs], name: str) -> None:
    run = runs[1][name]
    assert run.code == 0 and run.left == [], told(run)
    assert re.search(r"^warning: rank 1 of 2 .*branch and bound", run.lines[0]), told(run)
    assert len(run.lines) == (2 if name == "restart" else 1), told(run)
    before, going_on, after = run.out.partition("going on from")
    assert going_on and "Result: unsat" in after and "initial" not in after, told(run)
    assert re.search(r"with [1-9]\d* sub-problems", after), told(run)


def test_from_the_shell_and_from_another_folder(tmp_path: Path) -> None:
    """The process as users have it: one import, ranks forked from it, and the deadline counts from its start."""
    files = Problems.make(tmp_path)
    words = files.words("shell", "--nproc", "2")
    done = run_tree([sys.executable, SCRIPT, *words], 100, cwd=Path("/"))
    assert done.code == 0 and "Result: unsat" in done.output, done.output
    assert files.results("shell").read_text() == "unsat"


def test_a_list_launches_ranks_for_each_instance(tmp_path: Path) -> None:
    """Rows as of one process, and a row with the rank's line where one fails."""
    files = Problems.make(tmp_path)
    listed = tmp_path / "list.csv"
    listed.write_text(f"{','.join(files.easy)},30\n{files.easy[0]},{tmp_path / 'none.vnnlib'},30\n")
    words = ("--csv_name", str(listed), "--results_file", str(tmp_path / "rows.csv"), *COMMON, "--nproc", "2")
    done = run_tree([sys.executable, SCRIPT, *words, "--stats_file", str(tmp_path / "stats.json")], 120)
    assert done.code == 2, done.output
    assert done.output.count("Result: safe-incomplete") == 1 and done.output.count("error: ") == 1, done.output
    first = json.loads((tmp_path / "stats.json").read_text())["instances"][0]
    assert first["parallel"]["world_size"] == 2 and len(first["ranks"]) == 2


@pytest.mark.soak
def test_under_torchrun(tmp_path: Path) -> None:
    """The real one: a run, and the worker's line and code where its file is missing."""
    files = Problems.make(tmp_path)
    done = torchrun(2, [SCRIPT, *files.words("torchrun")], 150)
    assert done.code == 0 and done.output.count("Result: unsat") == 1, done.output
    done = torchrun(2, [SCRIPT, *files.words("torchrun", files=("none.onnx", files.easy[1]))], 150)
    assert done.code == 1, done.output
    assert done.output.count("error: none.onnx: no such file; check onnx_path\n") == 1, done.output
    assert re.search(r"exitcode\s*: 2 ", done.output), done.output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--nnodes", "2"), "--nnodes: is for a command that starts ranks; add --nproc N"),
        (("--max_restarts", "1"), "--max_restarts: is for a command that starts ranks; add --nproc N"),
        (("--nproc", "2", "--nnodes", "2"), "--nnodes 2: needs --node_rank and --master_addr on every machine"),
        (("--nproc", "2", "--node_rank", "1"), "--node_rank 1: expected 0 to 0, as --nnodes 1 says"),
        (("--nproc", "0"), '--nproc "0": expected gpu or an integer >= 1 or null'),
        (
            ("--nproc", "2", "--nnodes", "2", "--node_rank", "0", "--master_addr", "a", "--csv_name", "list.csv"),
            "--nnodes 2: a list runs on one machine so far; name one instance",
        ),
        (
            ("--nproc", "2", "--nnodes", "2", "--node_rank", "0", "--master_addr", "a", "--dataset", "MNIST"),
            "--nnodes 2: a data set runs on one machine so far; leave it out",
        ),
        (("--nproc", "2", "--prepare_only"), "general.prepare_only: reads and checks the input, which one process"),
        (("--nproc", "2", "--pgd_steps", "x"), "--pgd_steps"),
    ],
)
def test_what_cannot_be_launched_is_refused_before_any_rank_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], line: str
) -> None:
    def fork() -> int:
        raise AssertionError("a rank was started")

    monkeypatch.setattr(os, "fork", fork)
    files = () if "--csv_name" in words or "--dataset" in words else ("--vnnlib_path", "a.vnnlib")
    code = main(["--onnx_path", "a.onnx", *files, *COMMON, *words])
    errors = capsys.readouterr().err.splitlines()
    assert code == 2 and len(errors) == 1 and errors[0].startswith(f"error: {line}"), errors


# -- two machines -----------------------------------------------------------------------------------------------------
def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@contextmanager
def _two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces that see each other and nothing else; their addresses are 10.231.77.1 and .2."""
    names = tuple(f"abcrown-{os.getpid()}-{number}" for number in range(2))
    ends = tuple(f"ab{os.getpid() % 100000}{letter}" for letter in "ab")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
            _ip("link", "set", end, "netns", name)
            _ip("-n", name, "link", "set", end, "name", "veth0")
            _ip("-n", name, "addr", "add", f"10.231.77.{number}/24", "dev", "veth0")
            _ip("-n", name, "link", "set", "veth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names[0], names[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)


def test_two_machines(tmp_path: Path) -> None:
    """Two hosts with a network between them: a run to its end, and one that loses a rank of the second host."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    files = Problems.make(tmp_path)

    def host(number: int, network: str, name: str, port: str, *acts: Act) -> Command:
        where = ("--nnodes", "2", "--node_rank", str(number), "--master_addr", "10.231.77.1", "--master_port", port)
        instance = files.endless if acts or name == "lost" else files.easy
        words = files.words(f"{name}{number}", "--nproc", "2", *where, files=instance)
        return Command(words, acts, network=network, env=(("GLOO_SOCKET_IFNAME", "veth0"),))

    try:
        with _two_hosts() as (first, second):
            runs = run_commands(
                [
                    host(0, first, "whole", "29611"),
                    host(1, second, "whole", "29611"),
                    host(0, first, "lost", "29612"),
                    host(1, second, "lost", "29612", Act("", signal.SIGKILL, rank=1, wait_s=5.0)),
                ]
            )
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    whole, silent, lost, killed = runs
    assert whole.code == silent.code == 0 and "Result: unsat" in whole.out, told(whole) + told(silent)
    assert lost.code == killed.code == 3, told(lost) + told(killed)
    lines = lost.lines + killed.lines
    assert len(lines) == 1 and re.search(r"rank 3 of 4 was ended by SIGKILL", lines[0]), lines
    assert not any(run.left for run in runs)
