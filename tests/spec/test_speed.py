"""Reading large files: the seconds are reported (run with -rP), not asserted; growth must not be quadratic."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import process_time

import pytest

from complete_verifier.spec.compile import read_vnnlib_text

logger = logging.getLogger(__name__)


def declarations(n_inputs: int, n_outputs: int) -> str:
    names = [f"X_{i}" for i in range(n_inputs)] + [f"Y_{j}" for j in range(n_outputs)]
    return "".join(f"(declare-const {name} Real)\n" for name in names)


def box(n_inputs: int) -> str:
    return "".join(f"(assert (<= X_{i} {1 + i * 1e-7}))\n(assert (>= X_{i} -0.{i:09d}))\n" for i in range(n_inputs))


def image(size: int) -> str:
    """Many inputs, one comparison of outputs per class."""
    n = 30 * size
    return declarations(n, 10) + box(n) + f"(assert (or {' '.join(f'(and (>= Y_{j} Y_9))' for j in range(9))}))"


def boxes(size: int) -> str:
    """Thousands of cases, each with its own box of 20 inputs."""
    cases = [
        f"(and {' '.join(f'(<= X_{i} 0.{k:06d}{i})(>= X_{i} -0.{k:07d})' for i in range(20))} (<= Y_{k % 9} Y_9))\n"
        for k in range(1, 1 + 3 * size)
    ]
    return declarations(20, 10) + box(20) + f"(assert (or {''.join(cases)}))"


def clauses(size: int) -> str:
    """Tens of thousands of cases over the outputs, with arithmetic."""
    cases = [
        f"(and (<= Y_{k % 5} Y_9) (<= (+ (* 0.{k} Y_1) Y_2) {k}) (>= Y_3 -{k}.5))\n" for k in range(1, 1 + 30 * size)
    ]
    return declarations(20, 10) + box(20) + f"(assert (or {''.join(cases)}))"


@pytest.mark.parametrize("make", [image, boxes, clauses])
def test_reading_grows_in_proportion_to_the_file(make: Callable[[int], str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    speeds = []
    for size in (125, 1000):
        text = make(size)
        start = process_time()
        read_vnnlib_text(text)
        seconds = process_time() - start
        speeds.append(seconds / len(text))
        logger.info("%s: %.2f MB read in %.2f s", make.__name__, len(text) / 1e6, seconds)
    # A quadratic step over eight times the text would show as a factor near eight.
    assert speeds[1] < 4 * speeds[0], speeds
