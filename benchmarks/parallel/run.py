"""One of the paper's experiments: measure what is missing, then write its tables, checks and pictures.

    python benchmarks/parallel/run.py --exp 4 --world-size 2            # on this machine's GPUs, or its CPU
    python benchmarks/parallel/run.py --exp 4 --reduced                 # small nets, for a CPU: shows that all works
    python benchmarks/parallel/run.py --exp 4 --show                    # only the tables of what has been measured

Every mode runs in its own processes (P of them), a warm-up and three measured passes. The figures go to
OUT/expN.jsonl, one JSON object a line, as they come; a second call goes on where the first one ended. OUT/expN.md has
the tables, and OUT/expN_*.png the pictures if matplotlib is installed. The exit code is 1 if a job failed or was not
reached, or if something that must hold does not; a goal of speed or memory that is missed is only told.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.parallel import plots  # noqa: E402
from benchmarks.parallel.experiments.kinds import Check, Experiment, Figures, Options, Table, shown  # noqa: E402
from benchmarks.parallel.starting import Job, gpus, read, rows, run_jobs  # noqa: E402

NUMBERS = range(1, 9)


def main(words: list[str] | None = None) -> int:
    """Run one experiment or several."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exp", type=int, nargs="+", required=True, choices=NUMBERS, metavar="N")
    parser.add_argument("--world-size", type=int, nargs="+", default=[1, 2], metavar="P", help="default: 1 2")
    parser.add_argument("--reduced", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--out", type=Path, default=Path("out/parallel"))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "benchmarks", help="VNN-COMP folders")
    parser.add_argument("--models", type=Path, default=Path("out/models"), help="networks that are made are kept here")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds, after which no job is begun")
    parser.add_argument("--share-gpus", action="store_true", help="more ranks than GPUs, by gloo: times say nothing")
    parser.add_argument("--show", action="store_true", help="run nothing")
    given = parser.parse_args(words)
    options = Options(
        worlds=tuple(sorted({1, *given.world_size})),
        reduced=given.reduced,
        repeats=given.repeats,
        data=given.data.resolve(),
        models=given.models.resolve(),
        configs=ROOT / "exp_configs" / "parallel",
    )
    budget_s, most = 0.0 if given.show else given.budget, 0 if given.share_gpus else gpus()
    return max(_run(number, options, given.out, budget_s, most) for number in given.exp)


def load(number: int) -> Experiment:
    """The experiment of a number."""
    found = importlib.import_module(f"benchmarks.parallel.experiments.exp{number}").EXPERIMENT
    assert isinstance(found, Experiment)
    return found


def _run(number: int, options: Options, out: Path, budget_s: float, most_ranks: int) -> int:
    experiment = load(number)
    stem = f"exp{number}_reduced" if options.reduced else f"exp{number}"
    kept = out / f"{stem}.jsonl"
    wrong = []
    if budget_s > 0:
        held, too_many = _possible(experiment.jobs(options), most_ranks)
        wrong = run_jobs(held, kept, budget_s) + too_many
    figures = [one for one in read(kept) if "done" not in one]
    checks = list(experiment.checks(figures))
    text = report(experiment, figures, checks, wrong)
    (out / f"{stem}.md").parent.mkdir(parents=True, exist_ok=True)
    (out / f"{stem}.md").write_text(text, encoding="utf-8")
    print(text)
    for path in plots.draw(experiment.bars(figures), out, stem):
        print(f"picture: {path}")
    broken = [check for check in checks if check.met is False and not check.goal]
    return 1 if wrong or broken else 0


def _possible(jobs: Iterable[Job], most: int) -> tuple[list[Job], list[str]]:
    """The jobs that this machine can run, and a line for each that needs more GPUs than it has (0: no matter)."""
    held, not_held = [], []
    for job in jobs:
        needed = max(job.ranks, started(job))
        if most and needed > most:
            not_held.append(f"not run: needs {needed} GPUs, this machine has {most}: {job.key}")
        else:
            held.append(job)
    return held, not_held


def started(job: Job) -> int:
    """Ranks that the job's script starts itself."""
    words = job.arguments
    return int(words[words.index("--ranks") + 1]) if "--ranks" in words else 1


def report(experiment: Experiment, figures: list[Figures], checks: list[Check], wrong: list[str]) -> str:
    """The page of an experiment."""
    parts = [
        f"# Experiment {experiment.number}: {experiment.title}",
        f"- The paper says: {experiment.paper}",
        f"- Its authors found later: {experiment.later}",
        f"- Measured on: {_where(figures)}",
    ]
    text = "\n".join([parts[0], "", *parts[1:], ""])
    for table in experiment.tables(figures):
        if table.lines:
            text += f"\n## {table.title}\n\n{_told(table)}\n"
    if checks:
        lines = [(c.what, c.wanted, c.measured, "goal" if c.goal else "", shown(c.met)) for c in checks]
        text += f"\n## Checks\n\n{rows(('what', 'wanted', 'measured', '', 'met'), lines)}\n"
    if wrong:
        text += "\n## Not measured\n\n" + "".join(f"- {_why(lines)}\n" for lines in wrong)
    commands = list(dict.fromkeys(str(one["command"]) for one in figures if "command" in one))
    if commands:
        text += "\n## Commands\n\n```sh\n" + "\n".join(commands) + "\n```\n"
    return text


def _why(lines: str) -> str:
    """What went wrong with which job, and the last thing that it said."""
    first, *said = lines.splitlines()
    return f"{first} ({said[-1]})" if said else first


def _told(table: Table) -> str:
    lines = rows(table.header, [[shown(cell) for cell in line] for line in table.lines])
    return f"{lines}\n\n{table.note}" if table.note else lines


def _where(figures: list[Figures]) -> str:
    """Devices and dates; ranks that shared a GPU are named, as nothing can be said of their speed."""
    places = dict.fromkeys((_device(one), one.get("torch"), one.get("date")) for one in figures)
    known = [f"{device}, torch {version}, {date}" for device, version, date in places if device]
    return "; ".join(known) or "nothing yet"


def _device(one: Figures) -> str | None:
    device, ranks, there = one.get("device"), one.get("world", 1), one.get("gpus", 0)
    return f"{ranks} ranks on {there} {device} through gloo" if 0 < there < ranks else device


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())
