"""A rank that dies, hangs, runs out of memory, reads something else: one line, one code, in time, nothing left behind.

Faults are planted in one rank of real commands (`commands.py`), under our launcher and under an agent that does what
`torchrun` does.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parallel.commands import Act, Command, Ended, Fault, run_commands
from tests.parallel.launching import once
from tests.parallel.problems import Problems

SOON = ("--parallel_timeout_s", "3")
LOADED = "in vnnlib"  # the line that says that files are read
MARGIN_S = 20.0  # for a machine that many share; without it a hang would be as long as the time limit or timeout_s


@dataclass(frozen=True)
class Case:
    """``line``: a pattern of the one line on standard error; None: there is none. ``word``: in the results file."""

    command: Command
    code: int
    line: str | None
    seconds: float  # at most, less the margin
    word: str | None = None
    ranks: tuple[int, ...] = ()  # exit codes under the agent


def cases(files: Problems) -> Iterator[tuple[str, Case]]:
    def ours(name: str, size: int, *more: str, fault: Fault | None = None, acts: tuple[Act, ...] = ()) -> Command:
        return Command(files.words(name, "--nproc", str(size), *more), acts, fault)

    def agents(name: str, *more: tuple[str, ...], fault: Fault | None = None, acts: tuple[Act, ...] = ()) -> Command:
        return Command(ranks=tuple(files.words(name, *words) for words in more), acts=acts, fault=fault)

    at = r"its last step: fault in _incomplete \(complete_verifier/driver/instance.py:\d+\)$"
    yield (
        "killed",
        Case(ours("killed", 3, fault=Fault("kill")), 3, rf"^error: rank 1 of 3 was ended by SIGKILL .*{at}", 4),
    )
    yield (
        "first killed",
        Case(ours("first", 2, fault=Fault("kill", rank=0)), 3, rf"^error: rank 0 of 2 was ended by SIGKILL .*{at}", 4),
    )
    yield "killed in the search", Case(
        Command(
            files.words("search", "--nproc", "2", files=files.endless),
            (Act("BaB round 1", signal.SIGKILL, rank=1),),
        ),
        3, r"^error: rank 1 of 2 was ended by SIGKILL .*branch and bound", 12,
    )  # fmt: skip
    yield (
        "ended without a word",
        Case(ours("vanish", 2, fault=Fault("vanish")), 3, rf"^error: rank 1 of 2 ended with code 7; {at}", 4),
    )
    waits = r"^error: rank 1 of \d has not come to \w+, where rank \d waits, for \d+ s; "
    yield "sleeps", Case(ours("sleep", 3, *SOON, fault=Fault("sleep")), 3, waits + at, 8)
    yield "blocked", Case(ours("block", 2, *SOON, fault=Fault("block")), 3, waits + at, 8)
    yield "stopped", Case(
        ours("stop", 2, *SOON, fault=Fault("sleep"), acts=(Act(LOADED, signal.SIGSTOP, rank=1, wait_s=0.5),)),
        3, r"^error: rank 1 of 2 has ", 8,
    )  # fmt: skip
    yield (
        "out of memory",
        Case(ours("memory", 2, fault=Fault("no_memory")), 3, rf"^error: rank 1 of 2: out of memory: .*{at}", 6),
    )
    yield (
        "wrong in one",
        Case(
            ours("wrong", 3, fault=Fault("wrong")),
            1,
            rf"^internal error: rank 1 of 3: ZeroDivisionError: planted .*{at}",
            6,
        ),
    )
    yield (
        "wrong in all",
        Case(
            ours("all", 3, fault=Fault("wrong", rank=None)),
            1,
            r"^internal error: ZeroDivisionError: planted \(--debug",
            6,
        ),
    )
    yield (
        "library missing",
        Case(
            ours("library", 2, fault=Fault("no_library")), 1, r"^internal error: rank 1 of 2: ModuleNotFoundError: ", 6
        ),
    )
    yield (
        "deadline while one hangs",
        Case(ours("late", 2, "--timeout", "4", fault=Fault("block")), 0, None, 7, "timeout"),
    )
    yield (
        "deadline while the first hangs",
        Case(ours("late0", 2, "--timeout", "4", fault=Fault("block", rank=0)), 0, None, 7, "timeout"),
    )
    yield (
        "SIGTERM",
        Case(ours("term", 3, fault=Fault("sleep"), acts=(Act(LOADED, signal.SIGTERM),)), 0, None, 4, "unknown"),
    )
    yield "SIGTERM while all are blocked", Case(
        ours("termblock", 2, fault=Fault("block", rank=None), acts=(Act(LOADED, signal.SIGTERM),)),
        0, None, 7, "unknown",
    )  # fmt: skip
    yield (
        "SIGINT",
        Case(ours("int", 2, fault=Fault("sleep"), acts=(Act(LOADED, signal.SIGINT),)), 130, "^interrupted$", 4),
    )
    yield (
        "launcher killed",
        Case(ours("orphans", 2, fault=Fault("sleep"), acts=(Act(LOADED, signal.SIGKILL),)), -signal.SIGKILL, None, 3),
    )
    yield "no such file", Case(
        Command(files.words("bad", "--nproc", "3", files=("none.onnx", files.easy[1]))),
        2, r"^error: none\.onnx: no such file; check onnx_path$", 4,
    )  # fmt: skip
    yield (
        "agent: killed",
        Case(agents("a-kill", (), (), fault=Fault("kill")), 1, rf"^error: rank 1 of 2 is gone; {at}", 6, ranks=(3, -9)),
    )
    yield "agent: sleeps", Case(agents("a-sleep", SOON, SOON, fault=Fault("sleep")), 1, waits + at, 9, ranks=(3, 3))
    yield (
        "agent: wrong in one",
        Case(
            agents("a-wrong", (), (), fault=Fault("wrong")),
            1,
            rf"^internal error: rank 1 of 2: .*{at}",
            6,
            ranks=(1, 1),
        ),
    )
    yield "agent: SIGTERM", Case(
        agents("a-term", (), (), fault=Fault("sleep"), acts=(Act(LOADED, signal.SIGTERM),)),
        0, None, 4, "unknown", (0, 0),
    )  # fmt: skip
    gone = Act(LOADED, signal.SIGKILL)
    yield (
        "agent: it is killed itself",
        Case(agents("a-gone", (), (), fault=Fault("block"), acts=(gone,)), -signal.SIGKILL, None, 4),
    )
    yield (
        "agent: unknown flag",
        Case(
            agents("a-flag", ("--nonsense", "1"), ("--nonsense", "1")),
            1,
            "^error: --nonsense: unknown",
            4,
            ranks=(2, 2),
        ),
    )
    yield "agent: other settings", Case(
        agents("a-setting", (), ("--pgd_steps", "7")), 1,
        r"^error: rank 1 of 2 runs with attack\.pgd_steps = 7, rank 0 with its default; .*last step: comparing",
        6, ranks=(3, 3),
    )  # fmt: skip
    yield "agent: another file", Case(
        Command(ranks=(files.words("a-file"), files.words("a-file", files=(files.endless[0], files.easy[1])))),
        1, r"^error: rank 1 of 2 reads another file than rank 0: the network \(model\.onnx_path\) differs", 6,
        ranks=(3, 3),
    )  # fmt: skip
    yield (
        "agent: killed while the other works",
        Case(
            agents("a-work", (), (), fault=Fault("kill_second", rank=None)),
            1, rf"^error: rank 1 of 2 is gone; {at}", 6, ranks=(3, -9),
        ),
    )  # fmt: skip
    yield "agent: a file missing on one", Case(
        Command(ranks=(files.words("a-miss"), files.words("a-miss", files=("none.onnx", files.easy[1])))),
        1, r"^error: rank 1 of 2: none\.onnx: no such file; check onnx_path; its last step: stage load$", 6,
        ranks=(2, 2),
    )  # fmt: skip


NAMES = [name for name, _ in cases(Problems.names_only())]
# Other ways to what the rest shows: in the long form only.
LONG = {
    "first killed", "ended without a word", "blocked", "wrong in all", "library missing", "SIGINT", "agent: sleeps",
    "agent: wrong in one", "deadline while one hangs",
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
