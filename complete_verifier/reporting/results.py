"""Files that a run leaves behind. Each is written whole or not at all: to a file beside it, then renamed."""

from __future__ import annotations

import json
import math
import os
import pickle
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from auto_LiRPA.errors import ConfigError
from complete_verifier.reporting.report import InstanceReport
from complete_verifier.reporting.rows import Row
from complete_verifier.spec.counterexample import results_text


def prepare_output(path: Path, setting: str) -> None:
    """Make sure before any long work that ``path`` can be written, and take an older file of that name away.

    Raises:
        ConfigError: it cannot; the line names the setting.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{setting} = {path}: is a folder; name a file")
        if path.exists() and not path.is_file():
            return  # a device such as /dev/null
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.touch()
        path.unlink()
    except OSError as error:
        raise ConfigError(f"{setting} = {path}: cannot be written ({error.strerror}); name another file") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` so that a reader sees the old file or the new one, never a part."""
    target = path.resolve()  # a link stays a link
    if target.exists() and not target.is_file():
        target.write_bytes(content)
        return
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_result(path: Path, report: InstanceReport) -> None:
    """The results file of one instance: the verdict's word; after `sat` the counterexample."""
    write_atomically(path, results_text(report.verdict, report.counterexample).encode())


def write_counterexample(path: Path, report: InstanceReport) -> None:
    """The counterexample alone, where there is one."""
    if report.counterexample is not None:
        write_atomically(path, report.counterexample.encode())


def write_list_pickle(path: Path, rows: Sequence[Row]) -> None:
    """The results of a list as the pickle of plain values that upstream writes (interface 2.6)."""
    summary: dict[str, list[int]] = {}
    for row in rows:
        summary.setdefault(row.status, []).append(row.index)
    content = {
        "summary": summary,
        "results": [[row.status, row.seconds] for row in rows],
        "bab_ret": [
            [row.index, row.worst_bound, row.domains, row.phases.get("bab", 0.0)] for row in rows if row.rounds > 0
        ],
    }
    write_atomically(path, pickle.dumps(content))


def write_statistics(path: Path, report: InstanceReport) -> None:
    """The statistics of one instance as a JSON object (DESIGN 9)."""
    write_atomically(path, _json(statistics(report)))


def write_list_statistics(path: Path, reports: Sequence[InstanceReport]) -> None:
    """The statistics of a list: one object per instance under ``instances``."""
    write_atomically(path, _json({"instances": [statistics(report) for report in reports]}))


def statistics(report: InstanceReport) -> dict[str, object]:
    """One instance as plain values. Numbers that JSON cannot hold (no bound was found) are null."""
    search = report.search
    return {
        "index": report.index,
        "network": report.network,
        "specification": report.specification,
        "verdict": None if report.error else report.verdict.value,
        "status": report.status,
        "stopped_by": report.stopped_by,
        "error": report.error,
        "timeout_s": _number(report.timeout_s),
        "wall_s": round(report.wall_s, 4),
        "phases": {name: round(seconds, 4) for name, seconds in report.phases.items()},
        "bab": {
            "domains_visited": 0 if search is None else search.domains_visited,
            "rounds": 0 if search is None else search.rounds,
            "domains_per_s": 0.0 if search is None else _number(search.domains_per_s),
            "worst_bound": None if search is None else _number(search.worst_bound),
        },
        "bounds": {"lower": [_number(value) for value in report.row_bounds]},
        "parallel": None if report.placement is None else asdict(report.placement),
        "ranks": [asdict(rank) for rank in report.ranks],
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
