"""The lines at the end of a list of instances (interface 2.7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from complete_verifier.outcome import Verdict
from complete_verifier.reporting.rows import Row

_TITLE = "############# Summary #############"


def summary_lines(rows: Sequence[Row]) -> Iterator[str]:
    """How many instances ended how, and how long they took. What is neither proved nor refuted counts as timeout."""
    safe = [row for row in rows if row.solved and row.verdict == Verdict.HOLDS.value]
    unsafe = [row for row in rows if row.solved and row.verdict == Verdict.VIOLATED.value]
    others = [row for row in rows if not row.solved]
    share = 100 * len(safe) / len(rows) if rows else 0.0
    yield _TITLE
    yield f"Final verified acc: {share}% (total {len(rows)} examples)"
    yield (
        f"Problem instances count: {len(rows)} , total verified (safe/unsat): {len(safe)} ,"
        f" total falsified (unsafe/sat): {len(unsafe)} , timeout: {len(others)}"
    )
    groups = (
        ("ALL", list(rows)),
        ("verified SAFE", safe),
        ("verified (SAFE + UNSAFE)", safe + unsafe),
        ("verified SAFE + TIMEOUT", safe + others),
        ("verified UNSAFE", unsafe),
    )
    for name, group in groups:
        if group:
            times = [row.seconds for row in group]
            mean = sum(times) / len(times)
            yield f"mean time for {name} instances (total {len(group)}):{mean}, max time: {max(times)}"
    by_status: dict[str, list[int]] = {}
    for row in rows:
        by_status.setdefault(row.status, []).append(row.index)
    for status, indices in by_status.items():
        yield f"{status} (total {len(indices)}), index: {indices}"
