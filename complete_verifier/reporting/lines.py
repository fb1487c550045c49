"""Events as lines of text, in the words that scripts look for (interface 2.7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from complete_verifier.events import (
    AttackEnded,
    BoundsFound,
    Event,
    Note,
    ProblemLoaded,
    SearchProgressed,
    StageStarted,
)
from complete_verifier.reporting.report import InstanceReport


def lines_of(event: Event) -> Iterator[str]:
    """The lines of one event; none for an event that only moves a display on."""
    match event:
        case ProblemLoaded():
            yield f"Model: {event.network} ({event.nodes} nodes)"
            clauses = "clause" if event.clauses == 1 else "clauses"
            regions = "region" if event.regions == 1 else "regions"
            yield (
                f"{event.inputs} inputs and {event.outputs} outputs in vnnlib,"
                f" {event.clauses} {clauses} in {event.regions} {regions}"
            )
        case AttackEnded():
            yield "PGD attack succeeded!" if event.confirmed else "PGD attack failed"
            yield f"Attack finished in {event.seconds:.2f} seconds. (restarts: {event.restarts}, steps: {event.steps})"
        case BoundsFound():
            yield from _bounds(event)
        case SearchProgressed():
            yield (
                f"BaB round {event.round}: Length of domains: {event.domains_open},"
                f" Current (lb-rhs): {event.worst:.6g}, {event.domains_visited} domains visited,"
                f" Cumulative time: {event.seconds:.1f}"
            )
        case Note():
            yield event.text
        case StageStarted():
            return


def _bounds(event: BoundsFound) -> Iterator[str]:
    optimised = event.iterations > 0
    name = "alpha-crown" if optimised else event.method
    yield f"initial {name} bounds (first 10 items): {_numbers(event.margins)}"
    if optimised:
        yield f"alpha-CROWN took {event.iterations} iterations"
    else:
        yield f"# of unstable neurons: {event.unstable}"
    yield f"Global lower bound: {event.worst:.6g}"
    if event.proven == event.clauses:
        yield "verified with init bound!" if optimised else f"Verified with initial {event.method}!"
    else:
        yield f"{event.proven} / {event.clauses} OR specs are verified."


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def result_lines(report: InstanceReport, alone: bool) -> Iterator[str]:
    """The verdict, in the form for one instance or for an instance of a list."""
    if not alone:
        yield f"Result: {report.status} in {report.wall_s:.4f} seconds"
        return
    yield f"verified_status {report.status}"
    yield f"verified_success {report.status.startswith('safe')}"
    yield f"Stopped by: {report.stopped_by}"
    yield f"Result: {report.verdict.value}"
    yield f"Time: {report.wall_s:.2f}"
