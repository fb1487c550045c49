"""Wrong answer 9: a conjunct, or the input box of one disjunct, lost by the reader of properties.

Every case is decided three ways that share no code: by the boxes and clauses that the tool works with, by evaluating
the text, and (below) by whole runs on a network that is the identity, so that losing a part changes the verdict.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from complete_verifier.driver.input_regions import input_region
from complete_verifier.driver.questions import clauses_of
from complete_verifier.spec.compile import read_vnnlib_text
from tests.end_to_end.runs import run, write
from tests.graph.single import model, node, read

DECLARED = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1"))
BOX = "(assert (>= X_0 -1))(assert (<= X_0 1))(assert (>= X_1 -1))(assert (<= X_1 1))"

CASES = {
    "conjuncts of one clause": f"{BOX}(assert (<= Y_0 0))(assert (>= Y_1 0.5))(assert (<= (+ Y_0 Y_1) 0.25))",
    "and within or": f"{BOX}(assert (or (and (<= Y_0 0) (>= Y_1 0.5)) (and (>= Y_0 0.5) (<= Y_1 -0.5) (<= Y_0 1))))",
    "or beside a conjunct": f"{BOX}(assert (<= Y_0 0.5))(assert (or (<= Y_1 -0.5) (>= Y_1 0.5)))",
    "conjunct after the or": f"{BOX}(assert (or (<= Y_1 -0.5) (>= Y_1 0.5)))(assert (>= Y_0 0))",
    "two ors": f"{BOX}(assert (or (<= Y_0 -0.5) (>= Y_0 0.5)))(assert (or (<= Y_1 -0.5) (>= Y_1 0.5)))",
    "or within and within or": (
        f"{BOX}(assert (or (and (<= Y_0 0.5) (or (<= Y_1 -0.5) (and (>= Y_1 0) (<= Y_0 -0.5)))) (>= Y_0 1)))"
    ),
    "a box for each disjunct": (
        "(assert (or"
        " (and (>= X_0 -1) (<= X_0 -0.5) (>= X_1 -1) (<= X_1 1) (>= Y_0 0.5))"
        " (and (>= X_0 0.5) (<= X_0 1) (>= X_1 0) (<= X_1 0.5) (<= Y_0 0) (>= Y_1 -1))))"
    ),
    "the disjuncts cut the common box": (
        f"{BOX}(assert (or (and (<= X_0 0) (<= Y_0 -0.5)) (and (>= X_0 0) (>= X_1 0.5) (<= Y_1 0)) (>= Y_1 1)))"
    ),
    "boxes in one or, outputs in another": (
        f"{BOX}(assert (or (and (<= X_0 -0.5) (>= X_1 0)) (>= X_0 0.5)))(assert (or (<= Y_0 0) (>= Y_1 0.5)))"
    ),
    "box asserted after the outputs": f"(assert (<= Y_0 0))(assert (or (<= Y_1 0) (>= Y_0 -0.5))){BOX}",
    "outputs against each other": f"{BOX}(assert (or (and (<= Y_0 Y_1) (<= X_0 0)) (and (>= Y_0 Y_1) (>= X_0 0.5))))",
}
COMPARE: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}
GRID = (-1.25, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


def parsed(text: str) -> list[Any]:
    """S-expressions as nested lists, by a reader of its own."""
    stack: list[list[Any]] = [[]]
    for word in text.replace("(", " ( ").replace(")", " ) ").split():
        if word == "(":
            stack.append([])
        elif word == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(word)
    return stack[0]


def value(term: Any, point: dict[str, float]) -> float:
    """A number, a variable or a sum."""
    if isinstance(term, list):
        return sum(value(part, point) for part in term[1:])
    return point[term] if term in point else float(term)


def holds(formula: Any, point: dict[str, float]) -> bool:
    """Whether the point satisfies the formula."""
    head, *parts = formula
    if head in ("and", "or"):
        return (all if head == "and" else any)(holds(part, point) for part in parts)
    return COMPARE[head](value(parts[0], point), value(parts[1], point))


def assertions(text: str) -> list[Any]:
    return [item[1] for item in parsed(text) if item[0] == "assert"]


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_tensors_say_what_the_text_says(name: str) -> None:
    """11^4 points: a counterexample of the text is one of some region's box and clause, and the reverse."""
    text = CASES[name]
    spec = read_vnnlib_text(DECLARED + text)
    clauses = clauses_of(spec, torch.float64, torch.device("cpu"))
    graph = read(model([node("Relu", "x")], ["N", 2]))
    boxes = input_region(spec, graph.input_shape, torch.float64, torch.device("cpu"))
    points = torch.tensor(list(itertools.product(GRID, repeat=4)), dtype=torch.float64)
    x, y = points[:, :2], points[:, 2:]
    inside = ((x >= boxes.lower.unsqueeze(1)) & (x <= boxes.upper.unsqueeze(1))).all(2)  # [regions, N]
    met = (torch.einsum("kro,no->knr", clauses.c, y) <= clauses.rhs.unsqueeze(1)).all(2)  # [K, N]
    ours = (inside[clauses.region] & met).any(0)
    wanted = [
        all(holds(part, dict(zip(("X_0", "X_1", "Y_0", "Y_1"), point, strict=True))) for part in assertions(text))
        for point in points.tolist()
    ]
    assert 0 < sum(wanted) < len(wanted)
    wrong = points[ours != torch.tensor(wanted)]
    assert len(wrong) == 0, f"{len(wrong)} points, the first one {wrong[0].tolist()}"


def identity_files(folder: Path, text: str) -> tuple[str, str]:
    """``y = x`` through a ReLU on either side of 0, so that the engine has something to do."""
    eye = np.eye(2, dtype=np.float32)
    nodes = [
        node("MatMul", "x w0", "z"), node("Relu", "z", "a"), node("MatMul", "a w1"),
    ]  # fmt: skip
    constants = {"w0": np.concatenate([eye, -eye], 1), "w1": np.concatenate([eye, -eye], 0)}
    return write(folder, model(nodes, ["N", 2], constants), DECLARED + text)


def exists(text: str) -> bool:
    """Whether some x of a fine grid is a counterexample for y = x."""
    fine = np.arange(-24, 25) / 16
    for x in itertools.product(fine.tolist(), repeat=2):
        point = dict(zip(("X_0", "X_1", "Y_0", "Y_1"), (*x, *x), strict=True))
        if all(holds(part, point) for part in assertions(text)):
            return True
    return False


# for y = x; what would be lost is named, and with it the verdict would be the other one
RUNS = {
    "last conjunct": (f"{BOX}(assert (<= Y_0 0))(assert (>= Y_0 0.1))", "unsat"),
    "first conjunct": (f"{BOX}(assert (>= Y_0 2))(assert (<= Y_1 0))", "unsat"),
    "a conjunct within or": (f"{BOX}(assert (or (and (<= Y_0 0) (>= Y_0 0.1)) (>= Y_1 1.5)))", "unsat"),
    "the conjunct beside the or": (f"{BOX}(assert (>= Y_0 1.5))(assert (or (<= Y_1 0) (>= Y_1 0.5)))", "unsat"),
    "the second disjunct": (f"{BOX}(assert (or (>= Y_0 1.5) (<= Y_1 -0.5)))", "sat"),
    "the box of the second disjunct": (
        "(assert (or"
        " (and (>= X_0 -1) (<= X_0 0) (>= X_1 -1) (<= X_1 1) (>= Y_0 0.5))"
        " (and (>= X_0 0.5) (<= X_0 1) (>= X_1 -1) (<= X_1 1) (<= Y_0 0.25))))",
        "unsat",
    ),
    "the second box, which has the counterexample": (
        "(assert (or"
        " (and (>= X_0 -1) (<= X_0 0) (>= X_1 -1) (<= X_1 1) (>= Y_0 0.5))"
        " (and (>= X_0 0.5) (<= X_0 1) (>= X_1 -1) (<= X_1 1) (<= Y_0 0.75))))",
        "sat",
    ),
    "the cut of the common box": (f"{BOX}(assert (or (and (<= X_0 0) (>= Y_0 0.5)) (>= Y_1 1.5)))", "unsat"),
    "the disjunct without a box of its own": (f"{BOX}(assert (or (and (<= X_0 0) (>= Y_0 0.5)) (>= Y_1 0.9)))", "sat"),
}


@pytest.mark.parametrize("lost", sorted(RUNS))
def test_no_part_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str) -> None:
    text, word = RUNS[lost]
    assert ("sat" if exists(text) else "unsat") == word, "the case itself is wrong"
    done = run(capsys, tmp_path, identity_files(tmp_path, text), "--iteration", "5", "--init_iteration", "5")
    assert (done.code, done.word) == (0, word)
    if word == "sat":
        return
    # and without the attack, so that it is the proof that is asked
    assert run(capsys, tmp_path, identity_files(tmp_path, text), "--pgd_order", "skip").word == "unsat"
