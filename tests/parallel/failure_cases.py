"""Commands of several ranks in which something goes wrong, and how each of them has to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

from tests.parallel.commands import Act, Command
from tests.parallel.faults import Fault
from tests.parallel.problems import Problems

SOON = ("--parallel_timeout_s", "3")
LOADED = "in vnnlib"  # the line that says that files are read
AT = r"its last step: fault in _incomplete \(complete_verifier/driver/instance.py:\d+\)$"
WAITS = r"^error: rank 1 of \d has not come to \w+, where rank \d waits, for \d+ s; "


@dataclass(frozen=True)
class Case:
    """``line``: a pattern of the one line on standard error; None: there is none. ``word``: in the results file."""

    command: Command
    code: int
    line: str | None
    seconds: float  # at most, less the margin
    word: str | None = None
    ranks: tuple[int, ...] = ()  # exit codes under the agent


Cases = Iterator[tuple[str, Case]]


def cases(files: Problems) -> Cases:
    """All of them by name."""
    for part in (dying, hanging, short_of_memory, wrong, ended_from_outside, under_an_agent, given_other_input):
        yield from part(files)


def _ours(
    files: Problems, name: str, size: int, *more: str, fault: Fault | None = None, acts: tuple[Act, ...] = ()
) -> Command:
    """`abcrown --nproc SIZE`."""
    return Command(files.words(name, "--nproc", str(size), *more), acts, fault)


def _agents(
    files: Problems, name: str, *more: tuple[str, ...], fault: Fault | None = None, acts: tuple[Act, ...] = ()
) -> Command:
    """As `torchrun` would start them, one rank for each of ``more``."""
    return Command(ranks=tuple(files.words(name, *words) for words in more), acts=acts, fault=fault)


def dying(files: Problems) -> Cases:
    """A rank's process ends without a word."""
    ended = r"^error: rank {} was ended by SIGKILL .*"
    yield "killed", Case(_ours(files, "killed", 3, fault=Fault("kill")), 3, ended.format("1 of 3") + AT, 4)
    first = _ours(files, "first", 2, fault=Fault("kill", rank=0))
    yield "first killed", Case(first, 3, ended.format("0 of 2") + AT, 4)
    searching = Command(
        files.words("search", "--nproc", "2", files=files.endless), (Act("BaB round 1", signal.SIGKILL, rank=1),)
    )
    yield "killed in the search", Case(searching, 3, ended.format("1 of 2") + "branch and bound", 12)
    vanishing = _ours(files, "vanish", 2, fault=Fault("vanish"))
    yield "ended without a word", Case(vanishing, 3, rf"^error: rank 1 of 2 ended with code 7; {AT}", 4)


def hanging(files: Problems) -> Cases:
    """A rank does not come to a collective."""
    yield "sleeps", Case(_ours(files, "sleep", 3, *SOON, fault=Fault("sleep")), 3, WAITS + AT, 8)
    yield "blocked", Case(_ours(files, "block", 2, *SOON, fault=Fault("block")), 3, WAITS + AT, 8)
    stop = Act(LOADED, signal.SIGSTOP, rank=1, wait_s=0.5)
    stopped = _ours(files, "stop", 2, *SOON, fault=Fault("sleep"), acts=(stop,))
    yield "stopped", Case(stopped, 3, r"^error: rank 1 of 2 has ", 8)
    late = _ours(files, "late", 2, "--timeout", "4", fault=Fault("block"))
    yield "deadline while one hangs", Case(late, 0, None, 7, "timeout")
    first = _ours(files, "late0", 2, "--timeout", "4", fault=Fault("block", rank=0))
    yield "deadline while the first hangs", Case(first, 0, None, 7, "timeout")


def short_of_memory(files: Problems) -> Cases:
    """A rank's memory ends: between collectives, within one, while it bounds. The line says what to lower."""
    lower = r"lower parallel\.tile_rows "
    between = _ours(files, "memory", 2, fault=Fault("no_memory"))
    yield "out of memory", Case(between, 3, rf"^error: rank 1 of 2: out of memory: .*; {lower}.*{AT}", 6)
    line = rf"^error: rank 1 of 2: out of memory on cpu of rank 1 while bounding{{}}; {lower}\(now auto\) or .*its last"
    within = _ours(files, "memory2", 2, fault=Fault("no_memory_within"))
    yield "out of memory in a collective", Case(within, 3, line.format(r", in \w+ with other ranks"), 6)
    bounding = _ours(files, "memory3", 2, fault=Fault("no_memory_for_a_tile"))
    yield "out of memory in a tile", Case(bounding, 3, line.format(""), 6)
    agents = _agents(files, "a-memory", (), (), fault=Fault("no_memory_within"))
    told = line.format(r", in \w+ with other ranks")
    yield "agent: out of memory in a collective", Case(agents, 1, told, 6, ranks=(3, 3))


def wrong(files: Problems) -> Cases:
    """Errors of our own, and input that is none."""
    planted = r"internal error: {}ZeroDivisionError: planted "
    one = _ours(files, "wrong", 3, fault=Fault("wrong"))
    yield "wrong in one", Case(one, 1, rf"^{planted.format('rank 1 of 3: ')}.*{AT}", 6)
    every = _ours(files, "all", 3, fault=Fault("wrong", rank=None))
    yield "wrong in all", Case(every, 1, rf"^{planted.format('')}\(--debug", 6)
    library = _ours(files, "library", 2, fault=Fault("no_library"))
    yield "library missing", Case(library, 1, r"^internal error: rank 1 of 2: ModuleNotFoundError: ", 6)
    missing = Command(files.words("bad", "--nproc", "3", files=("none.onnx", files.easy[1])))
    yield "no such file", Case(missing, 2, r"^error: none\.onnx: no such file; check onnx_path$", 4)


def ended_from_outside(files: Problems) -> Cases:
    """Signals to the command."""
    term = (Act(LOADED, signal.SIGTERM),)
    yield "SIGTERM", Case(_ours(files, "term", 3, fault=Fault("sleep"), acts=term), 0, None, 4, "unknown")
    blocked = _ours(files, "termblock", 2, fault=Fault("block", rank=None), acts=term)
    yield "SIGTERM while all are blocked", Case(blocked, 0, None, 7, "unknown")
    interrupted = _ours(files, "int", 2, fault=Fault("sleep"), acts=(Act(LOADED, signal.SIGINT),))
    yield "SIGINT", Case(interrupted, 130, "^interrupted$", 4)
    killed = _ours(files, "orphans", 2, fault=Fault("sleep"), acts=(Act(LOADED, signal.SIGKILL),))
    yield "launcher killed", Case(killed, -signal.SIGKILL, None, 3)


def under_an_agent(files: Problems) -> Cases:
    """Ranks that `torchrun` started."""
    gone = rf"^error: rank 1 of 2 is gone; {AT}"
    killed = _agents(files, "a-kill", (), (), fault=Fault("kill"))
    yield "agent: killed", Case(killed, 1, gone, 6, ranks=(3, -9))
    sleeping = _agents(files, "a-sleep", SOON, SOON, fault=Fault("sleep"))
    yield "agent: sleeps", Case(sleeping, 1, WAITS + AT, 9, ranks=(3, 3))
    faulty = _agents(files, "a-wrong", (), (), fault=Fault("wrong"))
    yield "agent: wrong in one", Case(faulty, 1, rf"^internal error: rank 1 of 2: .*{AT}", 6, ranks=(1, 1))
    term = _agents(files, "a-term", (), (), fault=Fault("sleep"), acts=(Act(LOADED, signal.SIGTERM),))
    yield "agent: SIGTERM", Case(term, 0, None, 4, "unknown", (0, 0))
    orphaned = _agents(files, "a-gone", (), (), fault=Fault("block"), acts=(Act(LOADED, signal.SIGKILL),))
    yield "agent: it is killed itself", Case(orphaned, -signal.SIGKILL, None, 4)
    working = _agents(files, "a-work", (), (), fault=Fault("kill_second", rank=None))
    yield "agent: killed while the other works", Case(working, 1, gone, 6, ranks=(3, -9))


def given_other_input(files: Problems) -> Cases:
    """Ranks whose command lines or files are not the same, or are wrong."""
    flags = _agents(files, "a-flag", ("--nonsense", "1"), ("--nonsense", "1"))
    yield "agent: unknown flag", Case(flags, 1, "^error: --nonsense: unknown", 4, ranks=(2, 2))
    line = r"^error: rank 1 of 2 runs with attack\.pgd_steps = 7, rank 0 with its default; .*last step: comparing"
    yield "agent: other settings", Case(_agents(files, "a-setting", (), ("--pgd_steps", "7")), 1, line, 6, ranks=(3, 3))
    other = Command(ranks=(files.words("a-file"), files.words("a-file", files=(files.endless[0], files.easy[1]))))
    line = r"^error: rank 1 of 2 reads another file than rank 0: the network \(model\.onnx_path\) differs"
    yield "agent: another file", Case(other, 1, line, 6, ranks=(3, 3))
    missing = Command(ranks=(files.words("a-miss"), files.words("a-miss", files=("none.onnx", files.easy[1]))))
    line = r"^error: rank 1 of 2: none\.onnx: no such file; check onnx_path; its last step: stage load$"
    yield "agent: a file missing on one", Case(missing, 1, line, 6, ranks=(2, 2))
