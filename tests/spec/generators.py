"""Random VNN-LIB texts that the reader must accept or refuse for a reason, and points worth trying on them."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

from hypothesis import strategies as st

# Few values, so that points fall on the boundaries of constraints; each spelled in several ways.
GRID = ("-1", "-0.5", "0", "0.5", "1")
SPELLINGS = {
    "-1": ("-1", "-1.0", "(- 1)", "-1e0", "-10E-1"),
    "-0.5": ("-0.5", "-.5", "(- 0.50)", "-5e-1", "(/ 1 -2)"),
    "0": ("0", "0.0", "-0.0", "0e7", "(- 2 2)"),
    "0.5": ("0.5", ".5", "+0.50", "5E-1", "(* 0.25 2)"),
    "1": ("1", "1.", "1.00", "(+ 0.5 0.5)", "10e-1"),
}
COMPARE = st.sampled_from(["<=", ">=", "<", ">"])
NUMBERS = st.sampled_from([text for value in GRID for text in SPELLINGS[value]])
N_INPUTS = N_OUTPUTS = 2


def input_literal() -> st.SearchStrategy[str]:
    name = st.sampled_from([f"X_{i}" for i in range(N_INPUTS)])
    sided = st.sampled_from(["({c} {x} {n})", "({c} {n} {x})", "({c} (* -2 {x}) {n})", "({c} (+ {x} 0.5) {n})"])
    return st.builds(lambda form, c, x, n: form.format(c=c, x=x, n=n), sided, COMPARE, name, NUMBERS)


def output_literal() -> st.SearchStrategy[str]:
    name = st.sampled_from([f"Y_{j}" for j in range(N_OUTPUTS)])
    forms = (
        "({c} {a} {n})",
        "({c} {n} {a})",
        "({c} {a} {b})",
        "({c} (- {a} (* 2 {b})) {n})",
        "({c} (+ {a} {b} {n}) {a})",
        "({c} (* 0.1 (+ {a} 3 (- {b}))) (/ {n} 4))",
        "({c} (- {n}) (- {b}))",
    )
    return st.builds(
        lambda form, c, a, b, n: form.format(c=c, a=a, b=b, n=n), st.sampled_from(forms), COMPARE, name, name, NUMBERS
    )


def formula(depth: int = 3) -> st.SearchStrategy[str]:
    leaves = st.one_of(output_literal(), output_literal(), input_literal())

    def grow(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        group = st.builds(
            lambda head, parts: f"({head} {' '.join(parts)})",
            st.sampled_from(["and", "or"]),
            st.lists(children, min_size=1, max_size=3),
        )
        return st.one_of(group, group, st.builds("(not {})".format, children))

    return st.recursive(leaves, grow, max_leaves=2**depth)


FORMULAS = st.lists(formula(), min_size=1, max_size=3)


@st.composite
def vnnlib_text(draw: st.DrawFn) -> str:
    """Declarations, a box, and formulas, the assertions in any order; comments and line ends strewn in."""
    declarations = [f"(declare-const X_{i} Real)" for i in range(N_INPUTS)] + [
        f"(declare-const Y_{j} Real)" for j in range(N_OUTPUTS)
    ]
    box = []
    for i in range(N_INPUTS):
        lo, hi = draw(st.sampled_from([("-1", "1"), ("-1", "0.5"), ("-0.5", "1"), ("0", "1")]))
        less, more = draw(st.sampled_from([("<=", ">="), ("<", ">"), ("<=", ">")]))
        box += [f"(assert ({less} X_{i} {hi}))", f"(assert ({more} X_{i} {lo}))"]
    body = [f"(assert {text})" for text in draw(FORMULAS)]
    order = draw(st.permutations(box + body))
    separator = draw(st.sampled_from(["\n", "\r\n", "\r", " ", "\n; (assert (<= Y_0 -99))\n", ";)\n"]))
    return separator.join(declarations + list(order)) + draw(st.sampled_from(["", "\n", " ; end"]))


def all_points() -> list[tuple[tuple[Fraction, ...], tuple[Fraction, ...]]]:
    """Every input and output with coordinates on the grid, between its values and beyond them."""
    inputs = [Fraction(value) for value in ("-1", "-0.5", "0", "0.25", "0.5", "1.5")]
    outputs = [Fraction(value) for value in ("-4", "-1", "-0.5", "0", "0.25", "0.5", "1", "4")]
    return list(product(product(inputs, repeat=N_INPUTS), product(outputs, repeat=N_OUTPUTS)))
