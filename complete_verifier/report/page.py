"""The report as one self-contained HTML file: style, script and pictures are in it, and it asks for nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from complete_verifier.report.analysis import analyse
from complete_verifier.report.markup import Markup, element, join
from complete_verifier.report.reference import Reference
from complete_verifier.report.sections import page_parts
from complete_verifier.reporting.results import write_atomically
from complete_verifier.reporting.rows import Row

# The browser itself refuses whatever is not in the file.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(path: Path, rows: Sequence[Row], reference: Reference | None, name: str, settings: str) -> None:
    """Write the report of these rows. ``settings``: as YAML text, for the record."""
    write_atomically(path, report_page(rows, reference, name, settings).encode())


def report_page(rows: Sequence[Row], reference: Reference | None, name: str, settings: str) -> str:
    """The report as text."""
    analysis = analyse(sorted(rows, key=lambda row: row.index), reference)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        _meta_policy(),
        element("title", f"{name} \u2013 {analysis.all.solved} of {len(rows)} solved"),
        element("style", _asset("report.css")),
    )
    body = element("body", page_parts(analysis, name, settings), element("script", _asset("report.js")))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _meta_policy() -> Markup:
    return Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">')


def _asset(name: str) -> Markup:
    return join([Markup("\n"), Markup(files("complete_verifier.report").joinpath("assets", name).read_text("utf-8"))])
