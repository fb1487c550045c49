"""Solver processes: light, killed when late, gone afterwards; one that dies loses its task and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
from scipy.sparse import csr_array

from complete_verifier.mip.messages import Ending, Task
from complete_verifier.mip.pool import SolverPool
from complete_verifier.mip.program import Program
from tests.support import ROOT


def knapsack(n: int, seed: int = 0) -> tuple[Program, np.ndarray]:
    """Equality knapsacks of random large weights: minutes of search from about 40 items on."""
    gen = np.random.default_rng(seed)
    weights = gen.integers(10_000, 99_999, size=(4, n)).astype(float)
    program = Program(
        rows=csr_array(weights),
        limits=np.floor(weights.sum(1) / 2),
        equality=np.ones(4, dtype=np.bool_),
        lower=np.zeros(n),
        upper=np.ones(n),
        integer=np.ones(n, dtype=np.bool_),
    )
    return program, gen.normal(size=n)


def tasks(program: Program, cost: np.ndarray, seconds: list[float]) -> list[Task]:
    n = len(program.lower)
    return [
        Task(k, cost, np.zeros((0, n)), np.zeros(0), program.lower, program.upper, True, s)
        for k, s in enumerate(seconds)
    ]


def easy() -> tuple[Program, np.ndarray]:
    program = Program(
        csr_array(np.ones((1, 3))), np.array([2.5]), np.zeros(1, dtype=np.bool_), np.zeros(3), np.ones(3),
        np.ones(3, dtype=np.bool_),
    )  # fmt: skip
    return program, np.array([-3.0, -2.0, -1.0])


def _alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}") if sys.platform.startswith("linux") else False


def test_answers_and_nothing_left_behind() -> None:
    with SolverPool(2, lambda: 60.0) as pool:
        program, cost = easy()
        answers = {a.number: a for a in pool.solve(program, tasks(program, cost, [10.0] * 5))}
        pids = [solver.process.pid for solver in pool._solvers]
        assert sorted(answers) == [0, 1, 2, 3, 4]
        assert all(a.ending is Ending.OPTIMAL and abs(a.bound + 5) < 1e-6 for a in answers.values())
        assert list(answers[0].point.round()) == [1, 1, 0]
        unwanted = list(pool.solve(program, tasks(program, cost, [10.0] * 3), lambda task: task.number == 1))
        assert [a.number for a in unwanted] == [1]
    assert len(pids) == 2 and not any(_alive(pid) for pid in pids)


def test_deadline_ends_a_solve_within_a_second() -> None:
    began = time.monotonic()
    with SolverPool(1, lambda: 4.0 - (time.monotonic() - began)) as pool:
        program, cost = knapsack(80)
        answers = list(pool.solve(program, tasks(program, cost, [1e6, 1e6])))
        pid = [solver.process.pid for solver in pool._solvers]
    assert time.monotonic() - began < 5.5
    assert all(a.ending is not Ending.OPTIMAL for a in answers)
    assert not any(_alive(p) for p in pid)


def test_a_process_that_dies_loses_only_its_task() -> None:
    with SolverPool(1, lambda: 60.0) as pool:
        program, cost = knapsack(80)
        found: list[Ending] = []
        pool.start(1)
        victim = pool._solvers[0].process

        def kill(task: Task) -> bool:
            if task.number == 1:
                assert not _alive(victim.pid)
            return True

        stream = pool.solve(program, tasks(program, cost, [30.0, 0.5]), kill)
        threading.Timer(1.5, victim.kill).start()
        found = [answer.ending for answer in stream]
    assert found[0] is Ending.FAILED and found[1] in (Ending.LIMIT, Ending.OPTIMAL, Ending.INFEASIBLE)


def test_a_solver_process_imports_neither_torch_nor_our_engine() -> None:
    code = (
        "import sys; import complete_verifier.mip.worker as w; import scipy.optimize, scipy.sparse;"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'onnx', 'onnxruntime', 'auto_LiRPA')];"
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
