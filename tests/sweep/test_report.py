"""The report says what the rows say, is one file, and is well-formed; what is wrong comes first."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from complete_verifier.report.analysis import analyse, cactus
from complete_verifier.report.axes import linear_scale, log_scale
from complete_verifier.report.numbers import duration, percent
from complete_verifier.report.page import report_page
from complete_verifier.report.plots import compare
from complete_verifier.report.reference import read_reference
from complete_verifier.reporting.rows import Row
from complete_verifier.reporting.table import Table
from tests.sweep.reports import EXPECTED, ROWS, Tree, by_class, row, text_of, write_page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("report")).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(page: str) -> ET.Element:
    return Tree(page).root


def section(tree: ET.Element, title: str) -> ET.Element:
    """The innermost element whose heading begins so."""
    return next(
        e for e in reversed(list(tree.iter())) if len(e) and e[0].tag == "h2" and text_of(e[0]).startswith(title)
    )


# -- one file ---------------------------------------------------------------------------------------------------------
def test_the_page_needs_nothing_but_itself(page: str, tree: ET.Element) -> None:
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bsrc=|\bhref=", page)
    assert not any(element.tag in ("link", "img", "iframe", "object") for element in tree.iter())
    policy = [e.get("content") for e in tree.iter("meta") if e.get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy[0] is not None and policy[0].startswith("default-src 'none'")


def test_light_and_dark(page: str) -> None:
    light, dark = (set(re.findall(r"(--[\w-]+):", block)) for block in (
        page.split(":root {")[1].split("}")[0], page.split("prefers-color-scheme: dark")[1].split("}")[0]
    ))  # fmt: skip
    assert light == dark  # every colour has its counterpart
    used = set(re.findall(r"var\((--[\w-]+)\)", page)) - {"--share"}
    assert used <= light and 'data-theme="dark"' in page


def test_pictures_are_well_formed(page: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(pictures) == 2  # cactus and scatter
    for picture in pictures:
        root = ET.fromstring(picture)
        left, top, width, height = map(float, root.attrib["viewBox"].split())
        for circle in root.iter("circle"):
            assert left <= float(circle.attrib["cx"]) <= left + width
            assert top <= float(circle.attrib["cy"]) <= top + height
        for path in root.iter("path"):
            assert "nan" not in path.attrib["d"]


def test_names_are_text_never_markup(page: str, tree: ET.Element) -> None:
    assert "<b>onnx/b.onnx</b>" not in page and "<sweep>" not in page
    assert text_of(next(tree.iter("h1"))) == "a <sweep>"
    assert "error: <b>onnx/b.onnx</b>: broken & small" in text_of(section(tree, "Failures"))


# -- what it says -----------------------------------------------------------------------------------------------------
def test_what_is_wrong_comes_first(tree: ET.Element) -> None:
    main = next(tree.iter("main"))
    titles = [text_of(e) for e in main.iter("h2")]
    assert titles[:4] == ["Wrong verdicts1", "Contradictions1", "Failures1", "Late1"]
    assert "#1 a / p1" in text_of(section(tree, "Wrong verdicts"))
    assert "sat but known to be unsat" in text_of(section(tree, "Wrong verdicts"))
    assert "#3 a / p3" in text_of(section(tree, "Contradictions")) and "against sat" in text_of(section(tree, "Contr"))
    assert "#5 b / p5" in text_of(section(tree, "Late"))


def test_the_figures(tree: ET.Element) -> None:
    cards = {text_of(card[0]): (text_of(card[1]), text_of(card[2])) for card in by_class(tree, "card")}
    assert cards["solved"] == ("4", "of 7, 57.1\u2009%")
    assert cards["wrong"] == ("1", "of 4 checked")  # 0, 1, 5, 6: what the error and the unknown ones say is no verdict
    assert (cards["proved"][0], cards["refuted"][0], cards["open"][0], cards["errors"][0]) == ("3", "1", "2", "1")
    assert cards["median time"][0] == "6.25 s"  # of 0.5, 2.5, 10, 20


def test_the_table_holds_what_it_is_sorted_by(tree: ET.Element) -> None:
    table = next(e for e in tree.iter("table") if e.get("id") == "instances")
    names = [text_of(cell) for cell in table[0][0]]
    body = [dict(zip(names, tr, strict=True)) for tr in table[1]]
    assert [tr["#"].get("data-v") for tr in body] == [str(i) for i in range(7)]
    assert [float(tr["Seconds"].get("data-v", "")) for tr in body] == [one.seconds for one in ROWS]
    assert [tr["Worst bound"].get("data-v") for tr in body] == ["-0.25", "", "-1.5", "", "", "", ""]
    assert [text_of(tr["Verdict"]) for tr in body] == ["unsat", "sat", "timeout", "unsat", "error", "late", "unsat"]
    assert [text_of(tr["Known"]) for tr in body] == ["unsat", "unsat", "", "", "sat", "unsat", "unsat"]
    assert [text_of(tr["abcrown"]) for tr in body][:4] == ["unsat", "unsat", "timeout", "sat"]
    assert [tr.get("class") for tr in table[1]] == [None, "flagged", None, "flagged", "flagged", None, None]


def test_families(tree: ET.Element) -> None:
    table = next(section(tree, "By family").iter("table"))
    names = [text_of(cell) for cell in table[0][0]]
    rows = [dict(zip(names, map(text_of, tr), strict=True)) for tr in table[1]]
    assert [(r["Family"], r["Instances"], r["Solved"].split()[0], r["abcrown solved"]) for r in rows] == [
        ("fam", "5", "3", "4"), ("other", "2", "1", "1"), ("all", "7", "4", "5")
    ]  # fmt: skip
    assert [(r["Open"], r["Errors"]) for r in rows] == [("1", "1"), ("1", "0"), ("2", "1")]


def test_a_report_of_one_family_without_a_reference() -> None:
    good = [row(0, "unsat", 0.001), row(1, "sat", 3.0)]
    text = report_page(good, None, "x", "")
    assert "Nothing needs attention" in text and "By network" in text and text.count("<svg") == 1
    Tree(text)


@pytest.mark.parametrize("rows", [[], [row(0, "timeout", 60.0)], [row(0, "unsat", 0.0, phases={})]])
def test_lists_with_little_in_them(rows: list[Row]) -> None:
    Tree(report_page(rows, None, "x", ""))


# -- what is compared -------------------------------------------------------------------------------------------------
def test_the_comparison_in_numbers(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text(EXPECTED)
    found = compare(analyse(ROWS, read_reference(tmp_path / "e.csv")).all.entries)
    # both: 0 (2.5 to 7.5), 1 (10 to 9.5), 3 (0.5 to 6.5)
    assert (found.both, found.faster, found.only_ours, found.only_theirs, found.neither) == (3, 2, 1, 2, 1)
    assert found.median_ratio == pytest.approx(2.5 / 7.5)


def test_forms_of_references(tmp_path: Path) -> None:
    ours, plain, official = tmp_path / "ours.csv", tmp_path / "plain.csv", tmp_path / "official.csv"
    Table(ours, ROWS)
    plain.write_text("onnx,vnnlib,result,time\nonnx/a.onnx,p0.vnnlib.gz,holds,3\n./onnx/a.onnx,p1.vnnlib,violated,\n")
    official.write_text("fam,./b/fam/onnx/a.onnx,./b/fam/vnnlib/p0.vnnlib,0.1,unsat,4.5\n")
    read = [read_reference(path).of(ROWS[0]) for path in (ours, plain, official)]
    assert [(known.verdict, known.seconds) for known in read if known] == [
        ("unsat", 2.5),
        ("unsat", 3.0),
        ("unsat", 4.5),
    ]
    second = read_reference(plain).of(ROWS[1])
    assert second is not None and (second.verdict, second.seconds) == ("sat", None)
    assert read_reference(plain).of(ROWS[5]) is None


def test_the_same_names_in_several_folders(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("family,onnx,vnnlib,expected\nf,onnx/a.onnx,p.vnnlib,sat\ng,onnx/a.onnx,p.vnnlib,unsat\n")
    reference = read_reference(path)
    for folder, expected in (("f", "sat"), ("g", "unsat")):
        known = reference.of(row(0, "sat", 1.0, onnx=f"x/{folder}/onnx/a.onnx", vnnlib="p.vnnlib"))
        assert known is not None and known.expected == expected
    assert reference.of(row(0, "sat", 1.0, onnx="a.onnx", vnnlib="p.vnnlib")) is None  # which of the two?


# -- small parts ------------------------------------------------------------------------------------------------------
def test_the_cactus_counts() -> None:
    assert cactus([3.0, 1.0, 2.0]) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_scales() -> None:
    scale = log_scale([0.001, 0.5, 70.0], 0.0, 100.0)
    assert (scale.low, scale.high) == (0.01, 100.0)
    assert [scale.at(value) for value in (0.0001, 0.01, 1.0, 100.0, 1e9)] == [0.0, 0.0, 50.0, 100.0, 100.0]
    assert scale.marks() == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert log_scale([3.0, 3.0], 0.0, 1.0).marks()[0] >= 2.0
    assert linear_scale(60.0, 0.0, 60.0).marks() == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
    for high in range(1, 300):
        marks = linear_scale(high, 0.0, 1.0).marks()
        assert 2 <= len(marks) <= 8 and marks[-1] <= high


def test_numbers() -> None:
    assert [duration(x) for x in (0.428, 59.9, 61, 7300)] == ["0.43 s", "59.9 s", "1 min 01 s", "2 h 01 min"]
    assert percent(9999, 10000) == "99.9\u2009%" and percent(3, 3) == "100\u2009%"
