"""A rank that dies, hangs, runs out of memory, reads something else: one line, one code, in time, nothing left behind.

Faults are planted in one rank of real commands (`commands.py`), under our launcher and under an agent that does what
`torchrun` does.
"""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from tests.parallel.commands import Ended, run_commands
from tests.parallel.failure_cases import Case, cases
from tests.parallel.launching import once, run_tree
from tests.parallel.problems import Problems
from tests.support import ROOT

MARGIN_S = 20.0  # for a machine that many share; without it a hang would be as long as the time limit or timeout_s

NAMES = [name for name, _ in cases(Problems.names_only())]
# Other ways to what the rest shows: in the long form only.
LONG = {
    "first killed", "ended without a word", "blocked", "wrong in all", "library missing", "SIGINT", "agent: sleeps",
    "agent: wrong in one", "deadline while one hangs", "out of memory",
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Case, Ended, str | None]]:
    """All cases of this form, run once."""
    long = bool(request.config.getoption("--soak"))

    def make() -> dict[str, tuple[Case, Ended, str | None]]:
        files = Problems.make(tmp_path_factory.mktemp("failures"))
        found = {name: case for name, case in cases(files) if (name in LONG) == long}
        for case in found.values():  # what an earlier run left must not pass for a result
            _results(case).write_text("sat\n")
        runs = run_commands([case.command for case in found.values()])
        return {
            name: (case, run, _results(case).read_text().split("\n")[0] if _results(case).exists() else None)
            for (name, case), run in zip(found.items(), runs, strict=True)
        }

    return once(tmp_path_factory, "failures", make)


def _results(case: Case) -> Path:
    words = case.command.words or case.command.ranks[0]
    return Path(words[words.index("--results_file") + 1])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak) if name in LONG else name for name in NAMES]
)
def test_one_line_one_code_in_time_nothing_left(ended: dict[str, tuple[Case, Ended, str | None]], name: str) -> None:
    case, run, word = ended[name]
    told = f"{run.code} after {run.seconds:.1f} s\n{run.err}\n{run.out[-1500:]}"
    assert run.code == case.code, told
    if case.line is None:
        assert run.lines == [], told
    else:
        assert len(run.lines) == 1 and re.search(case.line, run.lines[0]), told
    assert run.left == [], f"left behind: {run.left}\n{told}"
    since = run.since_act if case.command.acts else run.seconds
    assert since < case.seconds + MARGIN_S, told
    if case.ranks:
        # an agent ends the others when one has ended: a rank that it came before did not get to its own end
        ended_by_agent = -signal.SIGTERM if name.startswith("agent") else None
        assert all(code in (wanted, ended_by_agent) for code, wanted in zip(run.codes, case.ranks, strict=True)), told
        assert any(code == wanted for code, wanted in zip(run.codes, case.ranks, strict=True)), told
    early = name in ("agent: unknown flag",)  # before it is known where results go
    assert word == ("sat" if early else case.word), told
    assert "Traceback" not in run.err + run.out, told


@pytest.mark.soak
def test_the_script_for_gpus_judges_what_ranks_without_them_do() -> None:
    done = run_tree([sys.executable, str(ROOT / "benchmarks/parallel/failures_gpu.py"), "--device", "cpu"], 280)
    assert done.code == 0, done.output
