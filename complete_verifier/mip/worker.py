"""A solver process: takes a program, then tasks over it, and answers each; ends when its input ends.

Started as a process of its own (a solve cannot be interrupted from within Python, a process can be killed). It must
start quickly, so it imports NumPy and SciPy only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import warnings
from typing import Any

import numpy as np

from complete_verifier.mip.dual import safe_lower_bound
from complete_verifier.mip.messages import Answer, Ending, Kind, Task, receive, send

_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def main() -> None:
    """Serve tasks until standard input ends."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run that started this process ends it
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints must not get between the answers
    program: _Loaded | None = None
    while (message := receive(sys.stdin.buffer)) is not None:
        if int(message["kind"]) == Kind.PROGRAM:
            program = _Loaded(message)
            continue
        assert program is not None
        answer = program.solve(_task(message))
        send(answers, {name: getattr(answer, name) for name in Answer.__slots__})


def _die_with_parent() -> None:
    """Ask the system to kill this process when its parent dies (Linux; elsewhere its time limits end it)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _task(message: dict[str, Any]) -> Task:
    return Task(
        number=int(message["number"]),
        cost=message["cost"],
        rows=message["rows"],
        limits=message["limits"],
        lower=message["lower"],
        upper=message["upper"],
        exact=bool(message["exact"]),
        seconds=float(message["seconds"]),
        gap=float(message["gap"]),
    )


class _Loaded:
    """The program that tasks are solved over."""

    def __init__(self, message: dict[str, Any]) -> None:
        from scipy.sparse import csr_array

        shape = (len(message["limits"]), len(message["integer"]))
        self.rows: Any = csr_array((message["data"], message["indices"], message["indptr"]), shape=shape)
        self.limits, self.equality = message["limits"], message["equality"]
        self.integer = message["integer"]

    def solve(self, task: Task) -> Answer:
        """One solve, within the task's time."""
        from scipy.sparse import csr_array, vstack

        began = time.monotonic()
        rows = vstack([self.rows, csr_array(task.rows)], format="csr") if len(task.rows) else self.rows
        limits = np.concatenate([self.limits, task.limits])
        equality = np.concatenate([self.equality, np.zeros(len(task.limits), dtype=np.bool_)])
        solve = self._exact if task.exact and self.integer.any() else self._relaxed
        ending, bound, value, point = solve(task, rows, limits, equality)
        return Answer(task.number, ending, bound, value, point, time.monotonic() - began)

    def _exact(self, task: Task, rows: Any, limits: Any, equality: Any) -> tuple[Ending, float, float, Any]:
        from scipy.optimize import Bounds, LinearConstraint, milp

        found = milp(
            task.cost,
            constraints=LinearConstraint(rows, np.where(equality, limits, -np.inf), limits),
            bounds=Bounds(task.lower, task.upper),
            integrality=self.integer.astype(np.uint8),
            options={"time_limit": task.seconds, "mip_rel_gap": task.gap},
        )
        point = np.zeros(0) if found.x is None else found.x
        value = np.inf if found.x is None else float(found.fun)
        if found.status == 2:
            return Ending.INFEASIBLE, np.inf, value, point
        bound = found.mip_dual_bound
        ending = {0: Ending.OPTIMAL, 1: Ending.LIMIT}.get(found.status, Ending.FAILED)
        return ending, -np.inf if bound is None or np.isnan(bound) else float(bound), value, point

    def _relaxed(self, task: Task, rows: Any, limits: Any, equality: Any) -> tuple[Ending, float, float, Any]:
        from scipy.optimize import linprog

        found = linprog(
            task.cost,
            A_ub=rows[~equality],
            b_ub=limits[~equality],
            A_eq=rows[equality],
            b_eq=limits[equality],
            bounds=np.stack([task.lower, task.upper], axis=1),
            method="highs",
            options={"time_limit": task.seconds},
        )
        if found.status != 0:
            # a linear program is only bounded by its multipliers: what the solver calls infeasible proves nothing
            return (Ending.LIMIT if found.status == 1 else Ending.FAILED), -np.inf, np.inf, np.zeros(0)
        multipliers = np.zeros(len(limits))
        multipliers[~equality] = found.ineqlin.marginals
        multipliers[equality] = found.eqlin.marginals
        bound = safe_lower_bound(task.cost, rows, limits, equality, task.lower, task.upper, multipliers)
        return Ending.OPTIMAL, bound, float(found.fun), found.x


if __name__ == "__main__":
    main()
