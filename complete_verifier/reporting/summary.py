"""The lines at the end of a list of instances (interface 2.7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from complete_verifier.outcome import Verdict
from complete_verifier.reporting.report import InstanceReport

_TITLE = "############# Summary #############"


def summary_lines(reports: Sequence[InstanceReport]) -> Iterator[str]:
    """How many instances ended how, and how long they took."""
    safe = [r for r in reports if r.error is None and r.verdict is Verdict.HOLDS]
    unsafe = [r for r in reports if r.error is None and r.verdict is Verdict.VIOLATED]
    others = [r for r in reports if r not in safe and r not in unsafe]
    share = 100 * len(safe) / len(reports) if reports else 0.0
    yield _TITLE
    yield f"Final verified acc: {share}% (total {len(reports)} examples)"
    yield (
        f"Problem instances count: {len(reports)} , total verified (safe/unsat): {len(safe)} ,"
        f" total falsified (unsafe/sat): {len(unsafe)} , timeout: {len(others)}"
    )
    groups = (
        ("ALL", list(reports)),
        ("verified SAFE", safe),
        ("verified (SAFE + UNSAFE)", safe + unsafe),
        ("verified SAFE + TIMEOUT", safe + others),
        ("verified UNSAFE", unsafe),
    )
    for name, group in groups:
        if group:
            times = [r.wall_s for r in group]
            mean = sum(times) / len(times)
            yield f"mean time for {name} instances (total {len(group)}):{mean}, max time: {max(times)}"
    by_status: dict[str, list[int]] = {}
    for report in reports:
        by_status.setdefault(report.status, []).append(report.index)
    for status, indices in by_status.items():
        yield f"{status} (total {len(indices)}), index: {indices}"
