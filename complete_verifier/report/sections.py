"""The parts of the page: head, figures, what needs attention, plots, tables."""

from __future__ import annotations

from collections.abc import Sequence

from complete_verifier.report.analysis import Analysis, Entry, Group, kinds, network_name, property_name
from complete_verifier.report.markup import Markup, Part, element, join
from complete_verifier.report.numbers import bound, count, duration, mib, percent, seconds
from complete_verifier.report.plots import cactus_plot, comparison_line, phase_bars, scatter_plot
from complete_verifier.reporting.rows import Row

OPEN = ("timeout", "unknown", "late")
_MOST_LISTED = 50


def head(analysis: Analysis, name: str) -> Markup:
    """Name of the sweep, when and where it ran, and the switch between light and dark."""
    rows = [entry.row for entry in analysis.all.entries]
    ended = max((row.finished_at for row in rows), default="")
    devices = sorted({row.device for row in rows if row.device})
    facts = [
        f"{count(len(rows))} instances",
        ended and f"last one ended {ended.replace('T', ' ').replace('Z', ' UTC')}",
        ", ".join(devices),
        f"{duration(analysis.all.seconds)} of work",
    ]
    return element(
        "header",
        element("div", element("h1", name), element("p", " \u00b7 ".join(fact for fact in facts if fact))),
        element("button", "Light / dark", type="button", id="theme"),
    )


def figures(analysis: Analysis) -> Markup:
    """The numbers to see first, and the verdicts as one bar."""
    group, total = analysis.all, len(analysis.all.entries)
    bad = len(analysis.wrong)
    cards = [
        _card("solved", f"{group.solved}", f"of {total}, {percent(group.solved, total)}"),
        _card("proved", str(group.count("unsat")), "unsat", "unsat"),
        _card("refuted", str(group.count("sat")), "sat", "sat"),
        _card("open", str(group.count(*OPEN)), "timeout or unknown"),
        _card("errors", str(group.count("error")), "no verdict", "error" if group.count("error") else ""),
        _card("median time", duration(group.median_solved), "of those solved"),
    ]
    if analysis.checked:
        cards.insert(1, _card("wrong", str(bad), f"of {analysis.checked} checked", "error" if bad else ""))
    found = kinds(group)
    key = [element("span", element("i", class_=f"swatch {kind}"), f"{kind} {number}") for kind, number in found]
    return element(
        "section", element("div", *cards, class_="cards"), _bar(found, total), element("p", *key, class_="key")
    )


def attention(analysis: Analysis) -> Markup:
    """Wrong verdicts, failures and late answers, before anything else; or that there are none."""
    parts = [
        _listing("Wrong verdicts", "These contradict a verdict that is known.", analysis.wrong, "bad"),
        _listing(
            "Contradictions", "The other run says the opposite; one of the two is wrong.", analysis.disputed, "bad"
        ),
        _listing("Failures", "No verdict: bad input, a crash, or out of memory.", analysis.failed, "warn"),
        _listing("Late", "Decided after the time limit: they count as timeouts.", analysis.late, "warn"),
    ]
    shown = [part for part in parts if part is not None]
    if shown:
        return element("section", *shown, id="attention")
    checked = f" {analysis.checked} verdicts agree with those known." if analysis.checked else ""
    fine = element("p", f"Nothing needs attention: no failures, no late answers.{checked}", class_="fine")
    return element("section", fine, id="attention")


def plots(analysis: Analysis) -> Markup:
    """The pictures, side by side where there is room."""
    pictures = [
        _figure(
            "Instances solved over time",
            "How many instances (across) are solved within how many seconds each (upwards).",
            cactus_plot(analysis),
        )
    ]
    reference = analysis.reference
    if reference is not None and reference.has_results:
        entries = analysis.all.entries
        caption = comparison_line(entries, reference.name)
        pictures.append(_figure(f"Against {reference.name}", caption, scatter_plot(analysis)))
    told = f"Seconds by phase, each {analysis.grouped_by} by itself; what no phase accounts for is left out."
    wide = "wide" if len(pictures) > 1 else None
    pictures.append(_figure("Where the time goes", told, phase_bars(analysis.groups), wide))
    return element("section", *pictures, class_="plots")


def summary_table(analysis: Analysis) -> Markup:
    """A line for each family, or for each network of the only one."""
    compared = analysis.reference is not None and analysis.reference.has_results
    columns = [
        analysis.grouped_by.capitalize(), "Instances", "Verdicts", "Solved", "unsat", "sat", "Open",
        "Errors", "Median s", "Total s", "Peak memory",
    ]  # fmt: skip
    if compared and analysis.reference is not None:
        columns.insert(4, f"{analysis.reference.name} solved")
    groups = [*analysis.groups, *([analysis.all] if len(analysis.groups) > 1 else [])]
    body = [_summary_row(group, compared, group is analysis.all and len(groups) > 1) for group in groups]
    head_row = element(
        "tr", *(element("th", name, class_="text" if i in (0, 2) else None) for i, name in enumerate(columns))
    )
    table = element("table", element("thead", head_row), element("tbody", *body))
    title = f"By {analysis.grouped_by}"
    return element("section", element("h2", title), element("div", table, class_="scroll"), id="summary")


def instance_table(analysis: Analysis) -> Markup:
    """Every instance; the script of the page sorts and filters it."""
    entries = analysis.all.entries
    names = _columns(analysis)
    header = [
        element(
            "th",
            element("button", name, type="button"),
            class_="text" if text else None,
            aria_sort="ascending" if number == 0 else "none",
            scope="col",
        )
        for number, (name, text) in enumerate(names)
    ]
    longest = max((entry.row.seconds for entry in entries), default=0.0)
    body = [_instance_row(entry, analysis, longest) for entry in entries]
    choices = [
        element(
            "button", f"{kind} {number}", type="button", class_=f"chip {kind}", data_kind=kind, aria_pressed="false"
        )
        for kind, number in kinds(analysis.all)
    ]
    search = element("input", type="search", id="filter", placeholder="Filter by name or message", aria_label="Filter")
    bar = element("div", search, *choices, element("span", "", id="shown"), class_="tools")
    table = element("table", element("thead", element("tr", *header)), element("tbody", *body), id="instances")
    return element("section", element("h2", "Instances"), bar, element("div", table, class_="scroll tall"))


def settings_part(text: str) -> Markup:
    """The settings that differ from the defaults."""
    shown = text or "(all settings have their defaults)"
    return element("details", element("summary", "Settings"), element("pre", shown))


# -- small parts ------------------------------------------------------------------------------------------------------
def _card(title: str, value: str, note: str, kind: str = "") -> Markup:
    return element(
        "div", element("span", title), element("strong", value), element("small", note), class_=f"card {kind}".strip()
    )


def _bar(found: Sequence[tuple[str, int]], total: int, small: bool = False) -> Markup:
    pieces = [
        element("i", class_=f"piece {kind}", style=f"flex-grow:{number}", title=f"{kind}: {number} of {total}")
        for kind, number in found
    ]
    return element("div", *pieces, class_="bar small" if small else "bar")


def _figure(title: str, caption: str, picture: Markup, kind: str | None = None) -> Markup:
    return element("figure", element("h2", title), picture, element("figcaption", caption), class_=kind)


def _listing(title: str, meaning: str, entries: Sequence[Entry], kind: str) -> Markup | None:
    if not entries:
        return None
    lines = [element("li", *_told(entry)) for entry in entries[:_MOST_LISTED]]
    if len(entries) > _MOST_LISTED:
        lines.append(element("li", f"and {len(entries) - _MOST_LISTED} more, in the table below"))
    head_line = element("h2", title, element("span", str(len(entries)), class_="number"))
    return element("div", head_line, element("p", meaning), element("ul", *lines), class_=f"notice {kind}")


def _told(entry: Entry) -> list[Part]:
    row, known = entry.row, entry.known
    parts: list[Part] = [
        element("b", f"#{row.index} {network_name(row)} / {property_name(row)}"), " ", _badge(entry.kind),
    ]  # fmt: skip
    if entry.wrong and known is not None:
        parts += [" but known to be ", _badge(known.expected)]
    elif entry.disputed and known is not None:
        parts += [" against ", _badge(known.verdict)]
    parts.append(f" after {seconds(row.seconds)} s of {row.timeout:g} s")
    if row.message and row.verdict == "error":
        parts.append(element("code", row.message))
    return parts


def _badge(kind: str) -> Markup:
    return element("span", kind, class_=f"badge {kind}")


def _summary_row(group: Group, compared: bool, last: bool) -> Markup:
    total = len(group.entries)
    cells = [
        element("td", "all" if last else group.name or "\u2013", class_="text name"),
        _number(total),
        element("td", _bar(kinds(group), total, small=True), class_="text"),
        element("td", f"{group.solved} ", element("small", percent(group.solved, total))),
        _number(group.reference_solved) if compared else None,
        *(_number(group.count(*some)) for some in (("unsat",), ("sat",), OPEN, ("error",))),
        element("td", seconds(group.median_solved)),
        element("td", seconds(group.seconds)),
        element("td", mib(group.peak_mib)),
    ]
    return element("tr", *cells, class_="total" if last else None)


def _number(value: int) -> Markup:
    return element("td", str(value), class_="zero" if value == 0 else None)


def _columns(analysis: Analysis) -> list[tuple[str, bool]]:
    """Names of the columns, and whether their contents are text."""
    columns = [("#", False)]
    if analysis.grouped_by == "family":
        columns.append(("Family", True))
    columns += [("Network", True), ("Property", True), ("Verdict", True), ("Seconds", False), ("Limit", False)]
    reference = analysis.reference
    if reference is not None and any(known.expected for known in reference.rows):
        columns.append(("Known", True))
    if reference is not None and reference.has_results:
        columns += [(reference.name, True), (f"{reference.name} s", False)]
    columns += [("Domains", False), ("Rounds", False), ("Worst bound", False), ("Peak MiB", False)]
    return [*columns, ("Status", True), ("Message", True)]


def _instance_row(entry: Entry, analysis: Analysis, longest: float) -> Markup:
    row, known, reference = entry.row, entry.known, analysis.reference
    cells = [_cell(str(row.index), row.index)]
    if analysis.grouped_by == "family":
        cells.append(element("td", entry.family, class_="text"))
    cells += [
        element("td", network_name(row), class_="text name", title=row.onnx),
        element("td", property_name(row), class_="text name", title=row.vnnlib),
        element("td", _badge(entry.kind), class_="text"),
        _time_cell(row, longest),
        _cell(f"{row.timeout:g}", row.timeout),
    ]
    if reference is not None and any(other.expected for other in reference.rows):
        cells.append(_other(known.expected if known else "", entry.wrong))
    if reference is not None and reference.has_results:
        cells.append(_other(known.verdict if known else "", entry.disputed))
        cells.append(_cell(seconds(known.seconds if known else None), known.seconds if known else None))
    cells += [
        _cell(count(row.domains) if row.domains else "", row.domains),
        _cell(count(row.rounds) if row.rounds else "", row.rounds),
        _cell(bound(row.worst_bound), row.worst_bound),
        _cell(f"{row.peak_mib:.0f}" if row.peak_mib is not None else "", row.peak_mib),
        element("td", row.status, class_="text"),
        element("td", row.message, class_="text message", title=row.message),
    ]
    flagged = "flagged" if entry.wrong or entry.disputed or row.verdict == "error" else None
    return element("tr", *cells, data_kind=entry.kind, class_=flagged)


def _time_cell(row: Row, longest: float) -> Markup:
    share = 100 * row.seconds / longest if longest > 0 else 0.0
    phases = ", ".join(f"{name} {seconds(spent)}" for name, spent in row.phases.items())
    return element(
        "td", seconds(row.seconds), data_v=repr(row.seconds), class_="time", style=f"--share:{share:.1f}%", title=phases
    )


def _other(verdict: str, contradicts: bool) -> Markup:
    """Another's verdict, which stands out only where it contradicts ours."""
    return element("td", _badge(verdict) if contradicts else verdict, class_="text dim")


def _cell(text: str, value: float | None) -> Markup:
    """A number, with its exact value to sort by; what is not known sorts last."""
    return element("td", text, data_v="" if value is None else repr(value))


def page_parts(analysis: Analysis, name: str, settings: str) -> Markup:
    """The whole body."""
    return join(
        [
            head(analysis, name),
            element(
                "main",
                figures(analysis),
                attention(analysis),
                plots(analysis),
                summary_table(analysis),
                instance_table(analysis),
                settings_part(settings),
            ),
        ]
    )
