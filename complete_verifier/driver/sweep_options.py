"""The words of `abcrown sweep`: its own flags; all others are those of every run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import LoadedConfig, load_config

COMMAND = "sweep"
_USAGE = "abcrown sweep [--config FILE.yaml] --csv LIST.csv --out DIR [--jobs N] [--report] [--flag value ...]"
_EPILOG = """\
Every other flag and --set are those of `abcrown` (abcrown --help) and hold for all instances.
A sweep that was interrupted goes on when the same command is given again."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep was asked for. ``loaded``: its settings, the list among them (``general.csv_name``)."""

    loaded: LoadedConfig
    folder: Path
    jobs: int
    report: bool
    compare: Path | None
    retry_errors: bool


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints as ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"abcrown sweep: {message.removeprefix('argument ')}")


def read_sweep(words: Sequence[str]) -> Sweep:
    """The words after `sweep`.

    Raises:
        ConfigError: they are unfit. SystemExit: help was asked for.
    """
    own, others = _parser().parse_known_args(list(words))
    loaded = load_config(others)
    if own.csv is not None:
        loaded = loaded.with_values(_list_named(loaded, Path(own.csv)), "--csv")
    elif loaded.config.general.csv_name is None:
        raise ConfigError("abcrown sweep: no list: give --csv LIST.csv (rows onnx,vnnlib,timeout)")
    if own.out is None:
        raise ConfigError("abcrown sweep: --out DIR is missing: the folder of the table, counterexamples and report")
    if own.jobs < 1:
        raise ConfigError(f"abcrown sweep: --jobs {own.jobs}: give an integer >= 1")
    compare = None if own.compare is None else Path(own.compare)
    report = own.report or compare is not None
    return Sweep(loaded, Path(own.out), own.jobs, report, compare, own.retry_errors)


def _list_named(loaded: LoadedConfig, path: Path) -> dict[str, object]:
    """Settings that make ``path`` the list. Its own paths start from general.root_path, or from beside it."""
    if not path.is_file():
        raise ConfigError(f"--csv {path}: no such file")
    values: dict[str, object] = {"general.csv_name": str(path.resolve()), "specification.vnnlib_path": None}
    if not loaded.config.general.root_path:
        values["general.root_path"] = str(path.parent)
    return values


def _parser() -> _Parser:
    parser = _Parser(
        prog="abcrown sweep",
        usage=_USAGE,
        description="Run a list of instances; DIR/results.csv gets a row as each ends.",
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--csv", metavar="LIST", help="rows onnx,vnnlib,timeout; paths start from beside the list")
    parser.add_argument("--out", metavar="DIR", help="folder of the results; made if it is missing")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="instances at a time, a process each [1]")
    parser.add_argument("--report", action="store_true", help="write DIR/report.html at the end")
    parser.add_argument(
        "--compare", metavar="CSV", help="known verdicts or another tool's results for the report (implies --report)"
    )
    parser.add_argument("--retry_errors", action="store_true", help="run rows again that ended without a verdict")
    return parser
