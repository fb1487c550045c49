"""A report with one of everything, and its HTML as a tree."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

from complete_verifier.report.page import report_page
from complete_verifier.report.reference import read_reference
from complete_verifier.reporting.rows import Row

EXPECTED = """\
family,onnx,vnnlib,timeout,expected,official_true_result,abcrown_result,abcrown_seconds
fam,onnx/a.onnx,vnnlib/p0.vnnlib,60,unsat,,unsat,7.5
fam,onnx/a.onnx,vnnlib/p1.vnnlib,60,unsat,,unsat,9.5
fam,onnx/a.onnx,vnnlib/p2.vnnlib,60,unknown,,timeout,60.1
fam,onnx/a.onnx,vnnlib/p3.vnnlib,60,,,sat,6.5
fam,onnx/b.onnx,vnnlib/p4.vnnlib,60,sat,,sat,6.6
other,onnx/b.onnx,vnnlib/p5.vnnlib,60,unsat,,unsat,40
other,onnx/b.onnx,vnnlib/p6.vnnlib,60,unsat,,timeout,60
"""
VOID = {"meta", "input"}


def row(index: int, verdict: str, seconds: float, **more: object) -> Row:
    """Properties 0 to 3 of network a, the others of network b."""
    values: dict[str, object] = {
        "index": index, "onnx": f"onnx/{'ab'[index > 3]}.onnx", "vnnlib": f"vnnlib/p{index}.vnnlib", "timeout": 60.0,
        "verdict": verdict, "status": {"unsat": "safe", "sat": "unsafe-pgd"}.get(verdict, "unknown"),
        "seconds": seconds, "phases": {"load": 0.1, "bab": seconds / 2},
        "finished_at": "2026-01-02T03:04:05Z", "device": "cpu",
    }  # fmt: skip
    return Row(**{**values, **more})  # type: ignore[arg-type]


ROWS = [
    row(0, "unsat", 2.5, domains=1200, rounds=7, worst_bound=-0.25, peak_mib=300.0),
    row(1, "sat", 10.0),  # wrong
    row(2, "timeout", 60.2, worst_bound=-1.5, domains=90),
    row(3, "unsat", 0.5),  # against what the other tool says, and nobody knows
    row(4, "error", 1.0, status="unknown-error", message="error: <b>onnx/b.onnx</b>: broken & small", peak_mib=None),
    row(5, "unsat", 60.9, status="safe (timed out)"),
    row(6, "unsat", 20.0, peak_mib=250.0),
]


def write_page(folder: Path) -> Path:
    """The report of `ROWS` against `EXPECTED`."""
    (folder / "expected.csv").write_text(EXPECTED)
    path = folder / "report.html"
    reference = read_reference(folder / "expected.csv")
    path.write_text(report_page(ROWS, reference, "a <sweep>", "bab:\n  timeout: 60\n"), encoding="utf-8")
    return path


class Tree(HTMLParser):
    """HTML as elements; it fails where an end has no beginning or the other way round."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = ET.Element("document")
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root], f"not closed: {[e.tag for e in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = ET.SubElement(self._open[-1], tag, {name: value or "" for name, value in attrs})
        if tag not in VOID:
            self._open.append(made)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        here = self._open[-1]
        if len(here):
            here[-1].tail = (here[-1].tail or "") + data
        else:
            here.text = (here.text or "") + data


def text_of(element: ET.Element) -> str:
    return "".join(element.itertext())


def by_class(root: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in root.iter() if name in element.get("class", "").split()]
