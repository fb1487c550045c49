"""Strong and weak scaling over P = 1, 2, 4, 8 ranks of experiments 1, 5, 6 and 8, in all modes, beside predictions.

    python benchmarks/parallel/scaling.py                         # on this machine's GPUs: P up to their number
    python benchmarks/parallel/scaling.py --reduced               # small sizes, ranks share the CPU, P = 1, 2, 4, 8
    python benchmarks/parallel/scaling.py --measure-only          # no tables, which take a minute of one core
    python benchmarks/parallel/scaling.py --show                  # only tables and pictures of what has been measured
    python benchmarks/parallel/scaling.py --show --ahead          # and predictions for P = 8, 64 and 512

Every mode runs in its own processes, one job after the other (`--side-by-side`: jobs of few ranks at once on other GPUs
of the host; their figures say ``shared_host``, and their times are no times to report). The figures go to
OUT/scaling.jsonl as they come; what is there is not run again, so a second call goes on where the budget ended the
first. OUT/scaling.md has the tables, OUT/scaling_*.png the pictures. Give each kind of machine an --out of its own:
times are compared within one file. The exit code is 1 if a job failed or was not begun, or if bits differ.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.parallel.experiments.kinds import Check, Options, Table, shown  # noqa: E402
from benchmarks.parallel.scaled.forking import gpus  # noqa: E402
from benchmarks.parallel.scaled.kinds import Study, Task, in_order  # noqa: E402
from benchmarks.parallel.scaled.running import Runner  # noqa: E402
from benchmarks.parallel.starting import Figures, read, rows  # noqa: E402

WORLDS = (1, 2, 4, 8)
EXPERIMENTS = (1, 5, 6, 8)


def main(words: list[str] | None = None) -> int:
    """Measure what is missing, then tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exp", type=int, nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--worlds", type=int, nargs="+", help="numbers of ranks; default: 1 2 4 8, as far as GPUs go")
    parser.add_argument("--modes", nargs="+", help="only jobs of these modes")
    parser.add_argument("--reduced", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--out", type=Path, default=Path("out/scaling"))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "benchmarks", help="VNN-COMP folders")
    parser.add_argument("--models", type=Path, default=Path("out/models"), help="what is made and drawn is kept here")
    parser.add_argument("--repeats", type=int, default=3, help="passes, fewer of long ones; exp 1: 2 N + 1")
    parser.add_argument("--budget", type=float, default=570.0, help="seconds, after which no job is begun")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--side-by-side", action="store_true", help="jobs at once on other GPUs: for memory and bits")
    how.add_argument("--exclusive", action="store_true", help="one job after the other (the default)")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--measure-only", action="store_true", help="tables are made elsewhere, with --show")
    parser.add_argument("--ahead", action="store_true", help="also the tables on paper: P = 8, 64, 512")
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    given = parser.parse_args(words)
    found = gpus()
    options = Options(
        worlds=tuple(sorted({1, *(given.worlds or (p for p in WORLDS if given.reduced or p <= max(1, found)))})),
        reduced=given.reduced,
        repeats=given.repeats,
        data=given.data.resolve(),
        models=given.models.resolve(),
        configs=ROOT / "exp_configs" / "parallel",
    )
    studies = list(_studies(given.exp, options))
    tasks = in_order(task for study in studies for task in study.tasks(options))
    tasks = [task for task in tasks if not given.modes or set(given.modes) & set(task.job.arguments)]
    stem = "scaling_reduced" if options.reduced else "scaling"
    if given.list:
        print("\n".join(f"exp {task.exp} P={task.world} {task.job.key}" for task in tasks))
        return 0
    wrong = [] if given.show else _measure(tasks, given.out / f"{stem}.jsonl", found, given)
    if given.measure_only:
        print("\n".join(line.splitlines()[0] for line in wrong))
        return 1 if wrong else 0
    return tell(studies, given.out, stem, wrong, options.reduced, given.ahead)


def _studies(numbers: list[int], options: Options) -> Iterator[Study]:
    from benchmarks.parallel.scaled import mlp, residual, search, wide

    every = {
        1: lambda: wide.study(options.reduced),
        5: lambda: mlp.STUDY,
        6: lambda: search.study(options.data, options.reduced),
        8: lambda: residual.study(options),
    }
    for number in sorted(set(numbers)):
        yield every[number]()


def _measure(tasks: list[Task], out: Path, found: int, given: argparse.Namespace) -> list[str]:
    if found == 0 and not given.reduced:
        return ["no GPU here: full sizes are not run on a CPU (--reduced is)"]
    runner = Runner(out, found, given.budget, exclusive=not given.side_by_side)
    runner.run(tasks)
    return runner.wrong


def tell(studies: list[Study], out: Path, stem: str, wrong: list[str], reduced: bool, ahead: bool) -> int:
    """Write and print the page; the exit code."""
    from benchmarks.parallel import plots
    from benchmarks.parallel.scaled import report

    figures = [one for one in read(out / f"{stem}.jsonl") if "done" not in one]
    text, broken, charts = f"# Scaling over ranks\n\nMeasured on: {_where(figures)}\n", False, []
    if reduced:
        text += "\nReduced sizes, ranks share the cores of one CPU: bits and traffic mean something, times do not.\n"
    for study in studies:
        results = report.Results.of(study, figures, reduced)
        every = [*report.tables(results), *report.predictions(results, ahead)]
        text += "".join(_table(table) for table in every if table.lines)
        checks = list(report.checks(results))
        broken = broken or any(check.met is False and not check.goal for check in checks)
        text += _checks(checks)
        charts += list(report.charts(results))
    if wrong:
        text += "\n## Not measured\n\n" + "".join(f"- {line.splitlines()[0]}\n" for line in wrong)
    commands = dict.fromkeys(str(one["command"]) for one in figures if "command" in one)
    text += "\n## Commands\n\n```sh\n" + "\n".join(commands) + "\n```\n" if commands else ""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{stem}.md").write_text(text, encoding="utf-8")
    print(text)
    for path in plots.draw(charts, out, stem):
        print(f"picture: {path}")
    return 1 if wrong or broken else 0


def _table(table: Table) -> str:
    lines = rows(table.header, [[shown(cell) for cell in line] for line in table.lines])
    return f"\n## {table.title}\n\n{lines}\n\n{table.note}\n"


def _checks(checks: list[Check]) -> str:
    if not checks:
        return ""
    lines = [(c.what, c.wanted, c.measured, "goal" if c.goal else "", shown(c.met)) for c in checks]
    return f"\n### Checks\n\n{rows(('what', 'wanted', 'measured', '', 'met'), lines)}\n"


def _where(figures: list[Figures]) -> str:
    keys = ("device", "host_gpus", "host_cores", "host", "torch", "date")
    places = dict.fromkeys(tuple(one.get(key) for key in keys) for one in figures)
    told = [
        f"{device}{f' x {count}' if count else ''} ({cores} cores, host {host}), torch {version}, {date}"
        for device, count, cores, host, version, date in places
    ]
    return "; ".join(told) or "nothing yet"


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())
