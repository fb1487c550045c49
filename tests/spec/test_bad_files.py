"""Every broken specification file ends in one line: file, line and column, what is wrong, the mend."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.compile import read_vnnlib, read_vnnlib_text

HEAD = "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
BOX = "(assert (<= X_0 1))\n(assert (>= X_0 0))\n(assert (<= X_1 1))\n(assert (>= X_1 0))\n"
GOOD = HEAD + BOX + "(assert (<= Y_0 Y_1))\n"  # 9 lines

# name: (text, place, words of the message). The place is what stands between the file name and the message.
BROKEN = {
    "2.0 version": ("(vnnlib-version <2.0>)\n" + GOOD, ":1:17: ", "VNN-LIB 2.0 is not supported yet"),
    "2.0 network": ("(declare-network f\n (declare-input X Real [1]))", ":1:2: ", "VNN-LIB 2.0 is not supported yet"),
    "empty file": ("; nothing\n", ": ", "no input is declared; add (declare-const X_0 Real)"),
    "no output": ("(declare-const X_0 Real)", ": ", "no output is declared"),
    "gap": (GOOD.replace("X_1", "X_2"), ":2:16: ", "X_2 is declared but X_1 is not"),
    "twice": ("(declare-const Y_0 Real)\n" + GOOD, ":4:16: ", "Y_0 is declared twice"),
    "other name": (GOOD.replace("Y_1", "Z_1"), ":4:16: ", "'Z_1' is no variable"),
    "leading zero": (GOOD.replace("Y_1", "Y_01"), ":4:16: ", "'Y_01' is no variable"),
    "sort": (GOOD.replace("Y_1 Real", "Y_1 Int"), ":4:20: ", "only Real is supported"),
    "undeclared": (GOOD + "(assert (<= Y_5 0))", ":10:13: ", "'Y_5' is not declared"),
    "unknown word": (GOOD + "(assert (<= Y_0 0,5))", ":10:17: ", "'0,5' is neither a declared variable nor a decimal"),
    "underscore": (GOOD + "(assert (<= Y_0 1_000))", ":10:17: ", "neither a declared variable nor a decimal"),
    "minus variable": (GOOD + "(assert (<= -Y_0 0))", ":10:13: ", "write (- Y_0)"),
    "nan": (GOOD + "(assert (<= X_0 NaN))", ":10:17: ", "no finite number"),
    "infinity": (GOOD + "(assert (<= X_0 inf))", ":10:17: ", "no finite number"),
    "overflow": (GOOD + "(assert (<= X_0 1e309))", ":10:17: ", "beyond the float64 range"),
    "huge exponent": (GOOD + "(assert (<= Y_0 1e99999999999999999999))", ":10:17: ", "beyond the float64 range"),
    "tiny": (GOOD + "(assert (<= Y_0 1e-2000))", ":10:17: ", "beyond the float64 range"),
    "product overflow": (GOOD + "(assert (<= (* 1e308 1e308 Y_0) 1))", ": ", "beyond the float64 range"),
    "empty box": (GOOD + "(assert (>= X_0 1.5))", ":10:10: ", "the box of input X_0 is empty: [1.5, 1]; correct one"),
    "open empty box": (GOOD + "(assert (> X_0 1.0))", ":10:10: ", "the box of input X_0 is empty: (1.0, 1]"),
    "empty case": (GOOD + "(assert (or (<= X_1 -1) (<= Y_0 0)))", ":10:14: ", "the box of input X_1 is empty"),
    "unbounded above": (GOOD.replace("(assert (<= X_1 1))\n", ""), ": ", "X_1 has no upper bound; add (assert (<= X_1"),
    "unbounded below": (GOOD.replace("(assert (>= X_0 0))\n", ""), ": ", "X_0 has no lower bound"),
    "unbounded case": (
        HEAD + "(assert (or (and (<= X_0 1) (>= X_0 0) (<= X_1 1) (<= Y_0 0)) (and (<= Y_1 0) (<= X_0 0))))",
        ":5:19: ",
        "in this case of the disjunction input X_1 has no lower bound",
    ),
    "two inputs": (GOOD + "(assert (<= X_0 X_1))", ":10:10: ", "the input region is a box"),
    "mixed": (GOOD + "(assert (<= X_0 Y_0))", ":10:10: ", "mixes inputs (X) and outputs (Y)"),
    "thirds": (GOOD + "(assert (<= (* 3 X_0) 1))", ":10:10: ", "no finite decimal result"),
    "not linear": (GOOD + "(assert (<= (* Y_0 (+ Y_1 1)) 1))", ":10:14: ", "a product of variables is not linear"),
    "divided": (GOOD + "(assert (<= (/ 1 Y_0) 1))", ":10:14: ", "a divisor must be a constant other than zero"),
    "divided by zero": (GOOD + "(assert (<= (/ Y_0 0) 1))", ":10:14: ", "a divisor must be a constant other than zero"),
    "equals": (GOOD + "(assert (= Y_0 1))", ":10:10: ", "write (and (<= a b) (>= a b))"),
    "chained": (GOOD + "(assert (<= 0 Y_0 1))", ":10:10: ", "'<=' takes two operands, found 3"),
    "not of two": (GOOD + "(assert (not (<= Y_0 1) (<= Y_1 1)))", ":10:10: ", "'not' takes one operand, found 2"),
    "bare variable": (GOOD + "(assert Y_0)", ":10:9: ", "'Y_0' is not supported as a formula"),
    "empty and": (GOOD + "(assert (and))", ":10:10: ", "'and' has no operand"),
    "empty parentheses": (GOOD + "(assert (or () (<= Y_0 1)))", ":10:14: ", "empty parentheses"),
    "formula as number": (GOOD + "(assert (<= (and Y_0) 1))", ":10:14: ", "'and' is no arithmetic operator"),
    "double parentheses": (GOOD + "(assert ((<= Y_0 1)))", ":10:11: ", "is not supported as a formula"),
    "never closed": (GOOD + "(assert (<= Y_0 1)", ":10:19: ", "to close (assert ...), found the end"),
    "inner never closed": (GOOD + "(assert (<= Y_0 1\n", ":10:9: ", "this '(' is never closed"),
    "parenthesis lost": (HEAD + "(assert (<= X_0 1)\n" + BOX, ":6:1: ", "to close (assert ...), found '('"),
    "parenthesis too many": (HEAD + "(assert (<= X_0 1)))\n", ":5:20: ", "expected a command in parentheses"),
    "unknown command": (GOOD + "(check-sat)", ":10:2: ", "unknown command 'check-sat'"),
    "word outside": ("hello\n" + GOOD, ":1:1: ", "expected a command in parentheses, found 'hello'"),
    "string": (GOOD + '(assert (<= "Y_0" 1))', ":10:13: ", "strings and |quoted| symbols"),
    "never holds": (GOOD + "(assert (<= 2 1))", ":10:10: ", "this assertion can never hold"),
    "no output constrained": (HEAD + BOX, ": ", "no assertion constrains an output"),
    "all cases contradict": (
        GOOD + "(assert (or (<= X_0 0.1) (<= X_0 0.2)))\n(assert (or (>= X_0 0.8) (>= X_0 0.9)))",
        ": ",
        "every case of the assertions contradicts itself",
    ),
    "too deep": (GOOD + "(assert " + "(not " * 300 + "(<= Y_0 1)" + ")" * 301, ":10:1009: ", "nested deeper than 200"),
    "explosion": (GOOD + "(assert (or (<= Y_0 0) (<= Y_1 0)))\n" * 40, ":49:10: ", "the disjunctions multiply out to"),
    "nested explosion": (
        GOOD + "(assert (and" + " (or (<= Y_0 0) (<= Y_1 0))" * 40 + "))",
        ":10:10: ",
        "the disjunctions multiply out to",
    ),
    "no formula": (GOOD + "(assert )", ":10:9: ", "expected a formula, found ')'"),
    "too few operands": (GOOD + "(assert (<= (* Y_0) 1))", ":10:14: ", "'*' has too few operands; give it 2"),
    "bound overflow": (GOOD.replace("(<= X_0 1)", "(<= (* 1e-300 X_0) 1e300)"), ": ", "beyond the float64 range"),
    "too many digits": (
        GOOD + f"(assert (<= (* {' '.join(['0.' + '1' * 990] * 5)} Y_0) 1))",
        ":10:10: ",
        "multiply out to more digits than can be kept",
    ),
    "long number": (GOOD + f"(assert (<= Y_0 0.{'1' * 2000}))", ":10:17: ", "a number of 2002 characters"),
}  # fmt: skip


def test_the_unbroken_file_is_read() -> None:
    assert read_vnnlib_text(GOOD).n_outputs == 2


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_text_ends_in_one_line(name: str, tmp_path: Path) -> None:
    text, place, words = BROKEN[name]
    file = tmp_path / "broken.vnnlib"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        read_vnnlib(file)
    message = str(caught.value)
    assert message.startswith(f"{file}{place}"), message
    assert words in message
    assert "\n" not in message and len(message) < len(str(file)) + 220


BYTES = {
    "truncated.gz": (gzip.compress(GOOD.encode())[:-20], "damaged gzip file"),
    "corrupt.gz": (gzip.compress(GOOD.encode())[:30] + b"\xff" * 40, "damaged gzip file"),
    "network.onnx": (b"\x08\x07\x12\x07pytorch:\xff\xfe(\x00", "expected a command in parentheses"),
}


@pytest.mark.parametrize("name", BYTES)
def test_a_file_that_is_no_text_ends_in_one_line(name: str, tmp_path: Path) -> None:
    data, words = BYTES[name]
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(SpecError, match=words) as caught:
        read_vnnlib(file)
    assert str(caught.value).startswith(str(file)) and str(caught.value).isascii()


def test_a_missing_file_names_the_packed_one(tmp_path: Path) -> None:
    (tmp_path / "a.vnnlib.gz").write_bytes(gzip.compress(GOOD.encode()))
    with pytest.raises(SpecError, match=r"no such specification file; did you mean .*a\.vnnlib\.gz\?"):
        read_vnnlib(tmp_path / "a.vnnlib")
    with pytest.raises(SpecError, match="no such specification file; check the path"):
        read_vnnlib(tmp_path / "b.vnnlib")
    with pytest.raises(SpecError, match="cannot be read"):
        read_vnnlib(tmp_path)
