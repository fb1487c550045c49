"""Counterexamples as text: printing them so that the decimals count, reading them, and checking what was printed.

Format (VNN-COMP): `((X_0  0.123)`, one pair a line, inputs then outputs, one outer pair of parentheses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from math import isfinite

import numpy as np
from numpy.typing import DTypeLike, NDArray

from auto_LiRPA.errors import ContractError, SpecError
from complete_verifier.outcome import Verdict
from complete_verifier.spec.lexer import NUMBER, Words, split_words
from complete_verifier.spec.property import Property
from complete_verifier.spec.rounding import Floats, exact_context

# The competition's checker recomputes Y and refuses a counterexample whose printed outputs are further off than
# this, relative to the largest output. Ours are recomputed likewise before a `sat`.
PRINTED_OUTPUT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Counterexample:
    """An input and its outputs as printed: decimals, flattened in C order."""

    x: tuple[Decimal, ...]
    y: tuple[Decimal, ...]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Whether a printed counterexample stands, and if not, why. True in a condition where it stands."""

    accepted: bool
    reason: str

    def __bool__(self) -> bool:
        return self.accepted


def printable_input(spec: Property, x: Floats, y: Sequence[float]) -> tuple[Decimal, ...] | None:
    """Decimals for the network input x ([n_in] in the network's own dtype) with outputs y, exactly a counterexample.

    The decimals lie in the box of a region whose clause y violates (exactly, strict where the file is strict), and a
    reader who casts them to x's dtype gets x. None where no region allows that: x, y is no counterexample then.
    """
    for region in spec.regions:
        decimals = region.decimals_for(x)
        if decimals is not None and spec.violated_by(decimals, y):
            return decimals
    return None


def format_counterexample(x: Sequence[Decimal | float], y: Sequence[float]) -> str:
    """The counterexample text; without a trailing newline. Numbers must be finite."""
    pairs = [f"(X_{i}  {_text(value)})" for i, value in enumerate(x)]
    pairs += [f"(Y_{j}  {_text(value)})" for j, value in enumerate(y)]
    if not pairs:
        raise ContractError("a counterexample has inputs and outputs")
    return "(" + "\n".join(pairs) + ")"


def _text(value: Decimal | float) -> str:
    """The shortest text of a float where it is the same number, else all digits of the decimal."""
    if not isfinite(value):
        raise ContractError(f"a counterexample holds finite numbers, found {value}")
    shortest = repr(float(value))
    return shortest if not isinstance(value, Decimal) or Decimal(shortest) == value else str(value)


def parse_counterexample(text: str, source: str = "counterexample") -> Counterexample:
    """Reads a counterexample text; a first line `sat`, as in a results file, is skipped. Raises SpecError."""
    words = split_words(text, source)
    at = 1 if words.words[0] == Verdict.VIOLATED.value else 0
    at = _expect(words, at, "(")
    values: dict[str, list[Decimal]] = {"X": [], "Y": []}
    while words.words[at] == "(":
        name = words.words[at + 1]
        known = values.get(name[:1])
        if known is None or name != f"{name[:1]}_{len(known)}" or (name[0] == "X" and values["Y"]):
            raise words.error(
                at + 1, f"{words.quote(at + 1)} is out of order; X_0, X_1, ... then Y_0, Y_1, ... follow each other"
            )
        known.append(_number(words, at + 2))
        at = _expect(words, at + 3, ")")
    at = _expect(words, at, ")")
    if words.words[at]:
        raise words.error(at, f"{words.quote(at)} follows the counterexample; remove it")
    return Counterexample(tuple(values["X"]), tuple(values["Y"]))


def _expect(words: Words, at: int, wanted: str) -> int:
    """Index of the word after the wanted one."""
    if words.words[at] != wanted:
        raise words.error(at, f"expected '{wanted}', found {words.quote(at)}; pairs are written (X_0  0.5)")
    return at + 1


def _number(words: Words, at: int) -> Decimal:
    word = words.words[at]
    try:
        value = exact_context().create_decimal(word) if NUMBER.fullmatch(word) else Decimal("NaN")
    except DecimalException:  # an exponent of many digits
        value = Decimal("NaN")
    if not value.is_finite() or not isfinite(float(value)):
        raise words.error(at, f"{words.quote(at)} is no finite decimal number")
    return value


def check_printed(
    spec: Property,
    text: str,
    run_network: Callable[[Floats], NDArray[np.floating]],
    *,
    dtype: DTypeLike = np.float32,
) -> CheckResult:
    """Whether the text, read as a stranger would, is a counterexample of `spec`.

    The printed decimals must lie exactly in a box; cast to `dtype` (through float64, as text is read) they are given
    to `run_network` ([n_in] -> [n_out], any shape), and those outputs must violate a clause of that box exactly.
    The printed outputs must be the recomputed ones within PRINTED_OUTPUT_TOLERANCE, and violate it too.
    """
    try:
        point = parse_counterexample(text)
    except SpecError as error:
        return CheckResult(False, str(error))
    if (len(point.x), len(point.y)) != (spec.n_inputs, spec.n_outputs):
        return CheckResult(
            False,
            f"{len(point.x)} inputs and {len(point.y)} outputs are printed,"
            f" the property has {spec.n_inputs} and {spec.n_outputs}",
        )
    if not any(region.contains(point.x) for region in spec.regions):
        return CheckResult(False, "the printed input lies outside the input box")
    printed_y = np.array([float(value) for value in point.y])
    outputs = np.asarray(run_network(np.array([float(value) for value in point.x]).astype(dtype))).reshape(-1)
    if outputs.size != spec.n_outputs:
        return CheckResult(False, f"the network gives {outputs.size} outputs, the property has {spec.n_outputs}")
    if not np.isfinite(outputs).all():
        return CheckResult(False, "the network's output at the printed input is not finite")
    gap = float(np.abs(outputs.astype(np.float64) - printed_y).max())
    if gap > PRINTED_OUTPUT_TOLERANCE * float(np.abs(outputs).max()):
        return CheckResult(False, f"the printed outputs differ from the network's by {gap:.3g}")
    if not spec.violated_by(point.x, outputs.tolist()):
        return CheckResult(False, "the network's output at the printed input violates no clause")
    if not spec.violated_by(point.x, printed_y.tolist()):
        return CheckResult(False, "the printed outputs violate no clause")
    return CheckResult(True, "confirmed")


def results_text(verdict: Verdict, counterexample: str | None = None) -> str:
    """The results file: the verdict's word; after `sat` a newline and the counterexample. No trailing newline."""
    if (verdict is Verdict.VIOLATED) != (counterexample is not None):
        raise ContractError("a results file holds a counterexample after sat, and only there")
    return verdict.value if counterexample is None else f"{verdict.value}\n{counterexample}"
