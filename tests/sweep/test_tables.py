"""Tables survive whatever ends the run that writes them; fingerprints tell which rows still hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import load_config
from complete_verifier.driver.instances import listed_instances
from complete_verifier.driver.limits import timeout_seconds
from complete_verifier.driver.listed import known_rows, rows_to_keep
from complete_verifier.outcome import Verdict
from complete_verifier.reporting.report import InstanceReport, SearchUse
from complete_verifier.reporting.rows import COLUMNS, VERDICTS, Row, row_of
from complete_verifier.reporting.table import Table, read_table
from complete_verifier.sweep.fingerprint import Fingerprints

ROW = Row(index=3, onnx="a.onnx", vnnlib="p.vnnlib", timeout=60.0, verdict="unsat", status="safe", seconds=1.25)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=20)


@given(
    row=st.builds(
        Row,
        index=st.integers(0, 10**6), onnx=WORDS, vnnlib=WORDS, timeout=FINITE, verdict=st.sampled_from(VERDICTS),
        status=WORDS, seconds=FINITE, domains=st.integers(0), rounds=st.integers(0), device=WORDS, message=WORDS,
        phases=st.dictionaries(st.sampled_from(["load", "bab"]), FINITE), worst_bound=st.none() | FINITE,
        peak_mib=st.none() | FINITE, finished_at=WORDS, fingerprint=WORDS,
    )
)  # fmt: skip
def test_a_row_reads_back_as_it_was(row: Row, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("table") / "t.csv"
    Table(path).append(row)
    assert read_table(path) == [row]
    assert len(path.read_bytes().split(b"\n")) == 3  # header, one line a row, nothing behind


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "t.csv"
    table = Table(path)
    table.append(ROW)
    table.append(replace(ROW, index=4, message="the last one " * 5))
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_table(path) == [ROW]
    path.write_bytes(path.read_bytes()[: len("index,onn")])  # killed within the header
    assert read_table(path) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("unsat", "not a table"),
        ("a,b\n1,2\n", "columns"),
        (",".join(COLUMNS) + "\nx" + "," * (len(COLUMNS) - 1) + "\n", "line 2"),
        (b"\xff\xfe", "not a text file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str | bytes, told: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=told) as caught:
        read_table(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_order_of_ending_does_not_matter_in_the_end(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.csv")
    for index in (2, 0, 1):
        table.append(replace(ROW, index=index))
    assert [row.index for row in read_table(table.path)] == [2, 0, 1]
    table.sort()
    assert [row.index for row in read_table(table.path)] == [0, 1, 2]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.symlink_to("/dev/full")
    with pytest.raises(ConfigError, match="No space left"):
        Table(path)


def test_a_row_of_a_report() -> None:
    report = InstanceReport(
        index=1,
        network="n.onnx",
        specification="p.vnnlib",
        verdict=Verdict.HOLDS,
        status="safe",
        stopped_by="all\nclosed",
        wall_s=61.0,
        timeout_s=60.0,
        phases={"load": 0.123456},
        search=SearchUse(7, 2, 1.0, float("-inf")),
    )
    row = row_of(report)
    assert (row.verdict, row.status, row.late, row.solved) == ("unsat", "safe (timed out)", True, False)
    assert (row.domains, row.rounds, row.worst_bound, row.message) == (7, 2, None, "all closed")
    assert row.phases == {"load": 0.1235}
    failed = row_of(replace(report, status="unknown-error", error="error: x"))
    assert (failed.verdict, failed.message, failed.late) == ("error", "error: x", False)


# -- which rows still hold --------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("n.onnx", "p.vnnlib", "q.vnnlib"):
        (tmp_path / name).write_text(name)
    (tmp_path / "list.csv").write_text("n.onnx,p.vnnlib,60\nn.onnx,q.vnnlib,60\nn.onnx,p.vnnlib,30\n")
    (tmp_path / "config.yaml").write_text("")
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    return ["--root_path", str(folder), "--csv_name", "list.csv", *more]


def table_of(folder: Path) -> list[Row]:
    """The rows of a finished run."""
    config = load_config(words(folder)).config
    prints = Fingerprints(config)
    rows = []
    for one in listed_instances(config):
        fingerprint = prints.of(one.network, one.specification, timeout_seconds(config, one.timeout_s))
        rows.append(replace(ROW, index=one.index, fingerprint=fingerprint))
    return rows


def still_hold(folder: Path, rows: list[Row], *more: str) -> list[int]:
    config = load_config(words(folder, *more)).config
    return [row.index for row in known_rows(rows, listed_instances(config), config)[0]]


def test_rows_hold_while_nothing_changes(folder: Path) -> None:
    rows = table_of(folder)
    assert len({row.fingerprint for row in rows}) == 3
    assert still_hold(folder, rows) == [0, 1, 2]
    # where files go, and which part is asked for, changes no result
    where = ("--results_file", "x.csv", "--cex_path", "c.txt", "--save_adv_example", "--end", "2", "--timeout", "9")
    assert still_hold(folder, rows, *where, "--parallel_threads", "3") == [0, 1, 2]


@pytest.mark.parametrize(
    ("flags", "holding"),
    [
        (("--batch_size", "7"), []),
        (("--pgd_order", "skip"), []),
        (("--double_fp",), []),
        (("--override_timeout", "30"), [2]),
        (("--timeout_scale", "0.5"), []),
    ],
)
def test_rows_of_other_settings_do_not_hold(folder: Path, flags: tuple[str, ...], holding: list[int]) -> None:
    assert still_hold(folder, table_of(folder), *flags) == holding


def test_rows_of_other_files_do_not_hold(folder: Path) -> None:
    rows = table_of(folder)
    (folder / "q.vnnlib").write_text("another property")
    assert still_hold(folder, rows) == [0, 2]
    (folder / "n.onnx").unlink()
    assert still_hold(folder, rows) == []


def test_a_list_of_a_yaml_file_goes_on_only_where_it_was_interrupted(folder: Path) -> None:
    config = load_config(words(folder)).config
    instances, path, rows = listed_instances(config), folder / "out.txt", table_of(folder)

    def kept(rows: list[Row]) -> list[int]:
        Table(path, rows)
        return [row.index for row in rows_to_keep(path, instances, config)]

    assert rows_to_keep(path, instances, config) == []
    assert kept(rows[:2]) == [0, 1]
    assert kept([rows[0], replace(rows[1], fingerprint="other")]) == [0]
    assert kept(rows) == []  # complete: asked for once more
    path.write_text("unsat")  # of a run of one instance
    assert rows_to_keep(path, instances, config) == []
