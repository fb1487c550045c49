"""Ranks on GPUs that are killed, hang or run out of memory under NCCL: one line, one exit code, in time, no orphan.

    python benchmarks/parallel/failures_gpu.py [--device cpu] [--only killed] [--side-by-side 2]

The gloo form of this is tests/parallel/test_failures.py; the planted faults are those of tests/parallel/faults.py.
All commands are forked from one process, so the whole takes about a minute. Two GPUs (or more) are needed, and neither
pytest nor a plotting library. Exit code 0: everything was as it has to be.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.parallel.commands import Command, Ended  # noqa: E402 (the checkout is not installed everywhere)
from tests.parallel.faults import Fault  # noqa: E402

_LIMIT_S = 240.0
_START_S = 30.0  # beside a case's own seconds: CUDA contexts and NCCL's start, several commands at once
_SOON = ("--parallel_timeout_s", "5")
_STEP = r"its last step: .*\((complete_verifier|auto_LiRPA)/[\w/]+\.py:\d+\)$"


@dataclass(frozen=True)
class Case:
    """How a command has to end. ``seconds``: after it has met its fault."""

    name: str
    command: Command
    code: int
    line: str | None
    word: str | None
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a trial of this script")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--side-by-side", type=int, default=2)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="failures-") as name:
        folder = Path(name)
        chosen = [case for case in cases(folder, options.device) if options.only in case.name]
        faults = 0
        for case, ended in zip(chosen, _run(chosen, folder, options.side_by_side), strict=True):
            wrong = _judged(case, ended, folder)
            faults += bool(wrong)
            print(f"{'WRONG' if wrong else 'ok   '} {case.name}: code {ended.code}, {ended.seconds:.1f} s")
            for line in ended.lines:
                print(f"      {line}")
            for one in wrong:
                print(f"      !! {one}")
            if wrong:
                print(ended.err[-3000:], ended.out[-1500:], sep="\n")
    orphans = _marked()
    seconds = time.monotonic() - began
    print(f"{len(chosen)} cases, {faults} wrong, {len(orphans)} processes left, {seconds:.0f} s in all")
    return int(bool(faults or orphans))


# -- cases ------------------------------------------------------------------------------------------------------------
def cases(folder: Path, device: str) -> Iterator[Case]:
    """Commands with two ranks; `--nproc gpu` where there are GPUs."""
    files = _files(folder)
    nproc = "gpu" if device == "cuda" else "2"
    common = (
        "--onnx_path", files[0], "--vnnlib_path", files[1], "--device", device, "--pgd_order", "skip",
        "--parallel_rows", "shard", "--parallel_threads", "1",
    )  # fmt: skip

    def words(name: str, *more: str) -> tuple[str, ...]:
        return (*common, "--results_file", str(folder / f"{name}.txt"), *more)

    def ours(name: str, *more: str, fault: Fault | None = None) -> Command:
        return Command(words(name, "--nproc", nproc, *more), fault=fault)

    single, fsdp = ("--parallel_mode", "single"), ("--parallel_mode", "fsdp", "--parallel_block_mib", "1")
    killed = rf"^error: rank 1 of \d+ was ended by SIGKILL \(out of memory\?\); {_STEP}"
    yield Case("plain", ours("plain", *single), 0, None, "unsat", 0)
    yield Case("plain-fsdp", ours("plain-fsdp", *fsdp), 0, None, "unsat", 0)
    nccl = ("--parallel_backend", "nccl") if device == "cuda" else ()
    yield Case("plain-fsdp-nccl", ours("plain-fsdp-nccl", *fsdp, *nccl), 0, None, "unsat", 0)
    for name, mode in (("killed", single), ("killed-fsdp", fsdp)):
        fault = Fault("kill_before_a_collective", rank=None)
        yield Case(f"{name}-before", ours(f"{name}-before", *mode, fault=fault), 3, killed, None, 10)
        fault = Fault("kill_within_a_collective", rank=None)
        yield Case(f"{name}-within", ours(f"{name}-within", *mode, fault=fault), 3, killed, None, 10)
    waits = rf"^error: rank 1 of \d+ has not come to [\w ]+, where rank \d waits, for \d+ s; {_STEP}"
    yield Case("hanging", ours("hanging", *single, *_SOON, fault=Fault("block")), 3, waits, None, 15)
    late = ours("deadline", *single, "--timeout", "20", fault=Fault("block"))
    yield Case("deadline", late, 0, None, "timeout", 25)
    if device == "cuda":
        memory = r"^error: rank 1 of \d+: out of memory on cuda:1 of rank 1 while .*; lower parallel\.tile_rows .*"
        fault = Fault("little_gpu_memory")
        yield Case("out-of-memory", ours("out-of-memory", *single, fault=fault), 3, memory, None, 10)
    gone = rf"^error: rank 1 of 2 is gone; {_STEP}"
    agent = Command(ranks=(words("agent", *single),) * 2, fault=Fault("kill_within_a_collective", rank=None))
    yield Case("agent-killed-within", agent, 1, gone, None, 12)


def _files(folder: Path) -> tuple[str, str]:
    """A random network with weights of some blocks, and a property that bounds prove."""
    rng, sizes = np.random.default_rng(0), (16, 1024, 1024, 2)
    nodes, initialisers, name = [], [], "x"
    for i, (n, m) in enumerate(zip(sizes, sizes[1:], strict=False)):
        weight = (rng.normal(size=(m, n)) / np.sqrt(n)).astype(np.float32)
        for what, value in ((f"w{i}", weight), (f"b{i}", np.zeros(m, np.float32))):
            initialisers.append(numpy_helper.from_array(value, what))
        last = i == len(sizes) - 2
        nodes.append(helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], ["y" if last else f"z{i}"], transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [f"z{i}"], [f"a{i}"]))
        name = f"a{i}"
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, sizes[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, sizes[-1]])], initialisers,
    )  # fmt: skip
    network, specification = folder / "net.onnx", folder / "property.vnnlib"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), network)
    inputs, outputs = range(sizes[0]), range(sizes[-1])
    lines = [f"(declare-const X_{i} Real)" for i in inputs] + [f"(declare-const Y_{i} Real)" for i in outputs]
    lines += [f"(assert (>= X_{i} -0.1))\n(assert (<= X_{i} 0.1))" for i in inputs] + ["(assert (<= Y_0 -1000.0))"]
    specification.write_text("\n".join(lines) + "\n")
    return str(network), str(specification)


# -- running and judging ----------------------------------------------------------------------------------------------
_MARK = f"ABCROWN_FAILURES_GPU={os.getpid()}"


def _run(chosen: Sequence[Case], folder: Path, side_by_side: int) -> list[Ended]:
    plan = folder / "plan"
    plan.write_bytes(pickle.dumps(([case.command for case in chosen], side_by_side)))
    start = "import sys; from pathlib import Path; from tests.parallel.commands import main; main(Path(sys.argv[1]))"
    name, _, value = _MARK.partition("=")
    env = {**os.environ, name: value, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-c", start, str(plan)], env=env, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(_LIMIT_S)
    except subprocess.TimeoutExpired:
        code = None
    if code != 0:
        for pid in _marked():
            os.kill(pid, signal.SIGKILL)
        raise SystemExit(f"the commands could not be run: {'time limit' if code is None else f'exit code {code}'}")
    found: list[Ended] = pickle.loads((folder / "ended").read_bytes())
    return found


def _judged(case: Case, ended: Ended, folder: Path) -> list[str]:
    """What is not as it has to be."""
    wrong = []
    if ended.code != case.code:
        wrong.append(f"exit code {ended.code}, wanted {case.code}")
    errors = [line for line in ended.lines if line.startswith(("error", "internal", "warning"))]
    if case.line is None and errors:
        wrong.append("an error was told")
    if case.line is not None and (len(errors) != 1 or not re.search(case.line, errors[0])):
        wrong.append(f"wanted one line like {case.line}")
    if "Traceback" in ended.out + ended.err:
        wrong.append("a traceback")
    if ended.left:
        wrong.append(f"left behind: {ended.left}")
    if ended.seconds > case.seconds + _START_S:
        wrong.append(f"took {ended.seconds:.1f} s")
    results = folder / f"{case.name}.txt"
    if case.command.ranks:
        results = folder / "agent.txt"
    word = results.read_text().split("\n")[0] if results.exists() else None
    if word != case.word:
        wrong.append(f"result {word}, wanted {case.word}")
    return wrong


def _marked() -> list[int]:
    """Processes of this run that are still there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if _MARK.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue  # it has just ended
    return found


if __name__ == "__main__":
    raise SystemExit(main())
