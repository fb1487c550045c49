"""The plots of the report: cactus, scatter against another run, and where the time goes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from complete_verifier.report.analysis import Analysis, Entry, Group, cactus, network_name, property_name
from complete_verifier.report.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    frame,
    linear_scale,
    log_scale,
    picture,
)
from complete_verifier.report.markup import Markup, element, join
from complete_verifier.report.numbers import duration
from complete_verifier.reporting.rows import SOLVED

_LEAST = 0.01  # shorter times are drawn as this
_MOST_MARKERS = 60
_MOST_BARS = 12
_BAND = 26.0  # for what one side did not solve
_PHASE_COLOURS = 6


def cactus_plot(analysis: Analysis) -> Markup:
    """How many instances are solved within how much time, of this sweep and of what it is compared with."""
    reference, entries = analysis.reference, analysis.all.entries
    ours = cactus(entry.row.seconds for entry in entries if entry.row.solved)
    theirs = cactus(e.known.seconds for e in entries if e.known and e.known.solved and e.known.seconds is not None)
    times = [seconds for _, seconds in (*ours, *theirs)]
    x = linear_scale(len(entries), LEFT, WIDTH - RIGHT)
    y = log_scale(times, HEIGHT - BOTTOM, TOP + 6, _LEAST)
    names = [("ours", f"this sweep ({len(ours)} of {len(entries)})")]
    lines = [_steps(theirs, x, y, "theirs"), _steps(ours, x, y, "ours")]
    if reference is not None and theirs:
        names.append(("theirs", f"{reference.name} ({len(theirs)})"))
    title = f"{len(ours)} of {len(entries)} instances solved, each within its time"
    key = [element("span", element("i", class_=f"stroke {kind}"), told) for kind, told in names]
    drawn = picture(title, frame(x, y, "instances solved", "seconds each"), *lines)
    return join([element("p", *key, class_="key"), drawn])


def _steps(points: Sequence[tuple[int, float]], x: Scale, y: Scale, kind: str) -> Markup:
    if not points:
        return Markup("")
    path = f"M{x.at(0):.1f} {y.at(points[0][1]):.1f}"
    path += "".join(f"V{y.at(value):.1f}H{x.at(number):.1f}" for number, value in points)
    dots = [
        element(
            "circle",
            element("title", f"{number} solved within {duration(value)} each"),
            cx=x.at(number), cy=y.at(value), r=2.6, class_=f"dot {kind}",
        )
        for number, value in points
        if len(points) <= _MOST_MARKERS
    ]  # fmt: skip
    return join([element("path", d=path, class_=f"line {kind}"), *dots])


@dataclass(frozen=True, slots=True)
class Comparison:
    """Numbers beside the scatter plot."""

    both: int
    faster: int
    only_ours: int
    only_theirs: int
    neither: int
    median_ratio: float | None


def compare(entries: Sequence[Entry]) -> Comparison:
    """Counts over the instances that the reference has results of."""
    known = [(entry.row, entry.known) for entry in entries if entry.known is not None and entry.known.verdict]
    pairs = [(row.seconds, other.seconds or 0.0) for row, other in known if row.solved and other.solved]
    ratios = [ours / theirs for ours, theirs in pairs if theirs > 0]
    return Comparison(
        both=len(pairs),
        faster=sum(ours < theirs for ours, theirs in pairs),
        only_ours=sum(row.solved and not other.solved for row, other in known),
        only_theirs=sum(other.solved and not row.solved for row, other in known),
        neither=sum(not other.solved and not row.solved for row, other in known),
        median_ratio=statistics.median(ratios) if ratios else None,
    )


def scatter_plot(analysis: Analysis) -> Markup:
    """Each instance by the other run's time and ours; what one side did not solve lies in the band at its end."""
    assert analysis.reference is not None
    entries = [entry for entry in analysis.all.entries if entry.known is not None and entry.known.verdict]
    times = [entry.row.seconds for entry in entries if entry.row.solved]
    times += [entry.known.seconds or 0.0 for entry in entries if entry.known and entry.known.solved]
    x = log_scale(times, LEFT, WIDTH - RIGHT - _BAND, _LEAST)
    y = log_scale(times, HEIGHT - BOTTOM, TOP + _BAND, _LEAST)
    name = analysis.reference.name
    dots = [_dot(entry, x, y, name) for entry in sorted(entries, key=lambda entry: entry.wrong or entry.disputed)]
    title = f"seconds of each instance: {name} across, this sweep upwards"
    axes = frame(x, y, f"{name}, seconds", "this sweep, seconds")
    names = [*SOLVED, *(["contradicts"] if any(entry.wrong or entry.disputed for entry in entries) else [])]
    key = [element("span", element("i", class_=f"spot {kind}"), kind) for kind in names]
    drawn = picture(title, _bands(x, y), axes, _diagonals(x, y), *dots)
    return join([element("p", *key, class_="key"), drawn])


def _bands(x: Scale, y: Scale) -> Markup:
    right, top = x.end + 4, y.end - 4 - (_BAND - 4)
    return join(
        [
            element("rect", x=right, y=y.end, width=_BAND - 4, height=y.start - y.end, class_="band"),
            element("rect", x=x.start, y=top, width=x.end - x.start, height=_BAND - 4, class_="band"),
            element("text", "not solved here", x=x.start + 8, y=top + 15, class_="mark faint"),
            element(
                "text", "not solved there", x=0, y=0, class_="mark faint", text_anchor="end",
                transform=f"translate({right + 15:.1f} {y.end + 8:.1f}) rotate(-90)",
            ),
        ]
    )  # fmt: skip


def _diagonals(x: Scale, y: Scale) -> Markup:
    """Equal times, and ten times more or less."""
    parts = [element("line", x1=x.start, y1=y.start, x2=x.end, y2=y.end, class_="diagonal")]
    if x.high / x.low > 10:
        low, high = x.low, x.high
        for x1, y1, x2, y2 in ((low * 10, low, high, high / 10), (low, low * 10, high / 10, high)):
            parts.append(element("line", x1=x.at(x1), y1=y.at(y1), x2=x.at(x2), y2=y.at(y2), class_="diagonal far"))
    return join(parts)


def _dot(entry: Entry, x: Scale, y: Scale, name: str) -> Markup:
    row, known = entry.row, entry.known
    assert known is not None
    if not row.solved and not known.solved and not entry.wrong:
        return Markup("")
    at_x = x.at(known.seconds or 0.0) if known.solved else x.end + 4 + (_BAND - 4) / 2
    at_y = y.at(row.seconds) if row.solved else y.end - 4 - (_BAND - 4) / 2
    other = duration(known.seconds) if known.solved else "not solved"
    told = element(
        "title",
        f"{network_name(row)} / {property_name(row)}\nthis sweep: {entry.kind}, {duration(row.seconds)}"
        f"\n{name}: {known.verdict}, {other}",
    )
    if entry.wrong or entry.disputed:
        cross = f"M{at_x - 5:.1f} {at_y - 5:.1f}l10 10m0 -10l-10 10"
        return element("path", told, d=cross, class_="cross")
    kind = entry.row.verdict if row.solved else known.verdict
    return element("circle", told, cx=at_x, cy=at_y, r=4, class_=f"point {kind}")


def phase_bars(groups: Sequence[Group]) -> Markup:
    """Where the time goes: a bar for each group, the longest first. In HTML, so that it fits any width."""
    chosen = sorted(groups, key=lambda group: -group.seconds)[:_MOST_BARS]
    names = list(dict.fromkeys(name for group in chosen for name in group.phases))
    most = max((group.seconds for group in chosen), default=0.0) or 1.0
    key = [element("span", element("i", class_=f"swatch p{n % _PHASE_COLOURS}"), name) for n, name in enumerate(names)]
    lines = [_phase_bar(group, names, most) for group in chosen]
    if len(groups) > len(chosen):
        lines.append(element("span", f"and {len(groups) - len(chosen)} more", class_="faint"))
    return join([element("p", *key, class_="key"), element("div", *lines, class_="phases")])


def _phase_bar(group: Group, names: Sequence[str], most: float) -> Markup:
    spent = group.phases
    pieces = [
        element(
            "i",
            class_=f"piece p{number % _PHASE_COLOURS}",
            style=f"width:{100 * spent[name] / most:.2f}%",
            title=f"{name}: {duration(spent[name])} of {duration(group.seconds)}",
        )
        for number, name in enumerate(names)
        if name in spent
    ]
    return join(
        [
            element("span", group.name or "all", class_="name", title=group.name),
            element("div", *pieces, class_="track"),
            element("span", duration(group.seconds), class_="spent"),
        ]
    )


def comparison_line(entries: Sequence[Entry], name: str) -> str:
    """The scatter plot in words."""
    found = compare(entries)
    words = [f"Faster than {name} on {found.faster} of the {found.both} solved by both"]
    if found.median_ratio is not None:
        words.append(f"median ratio of times {found.median_ratio:.2g}")
    words.append(f"solved only here: {found.only_ours}, only there: {found.only_theirs}, by neither: {found.neither}")
    return "; ".join(words) + "."
