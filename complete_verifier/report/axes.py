"""The frame of a plot: scales, grid, marks and labels, in the units of its view box."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from complete_verifier.report.markup import Markup, element, join
from complete_verifier.report.numbers import tick

WIDTH, HEIGHT = 520.0, 380.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 18.0, 16.0, 48.0
_STEPS = (1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values onto a line from ``start`` to ``end``; values outside are put at its ends."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    def at(self, value: float) -> float:
        """Where a value lies."""
        value = min(max(value, self.low), self.high)
        low, high, here = self.low, self.high, value
        if self.logarithmic:
            low, high, here = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (self.end - self.start) * (here - low) / (high - low)

    def marks(self) -> list[float]:
        """Values to label: powers of ten (and their 2 and 5 times where these are few), or round steps."""
        if not self.logarithmic:
            return _round_marks(self.high)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        steps = _STEPS if last - first <= 2 else _STEPS[:1]
        marks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        return [mark for mark in marks if self.low * 0.999 <= mark <= self.high * 1.001]


def log_scale(values: Iterable[float], start: float, end: float, least: float = 0.01) -> Scale:
    """A logarithmic scale that holds all values; the ends are round."""
    known = [max(value, least) for value in values] or [1.0]
    low, high = _round_down(min(known)), _round_up(max(known))
    return Scale(low, high if high > low else low * 10, start, end, True)


def linear_scale(high: float, start: float, end: float) -> Scale:
    """A scale from zero."""
    return Scale(0.0, max(high, 1.0), start, end, False)


def frame(x: Scale, y: Scale, x_label: str, y_label: str) -> Markup:
    """Grid lines, marks and the names of both axes."""
    parts: list[Markup] = []
    for mark in x.marks():
        at = x.at(mark)
        parts.append(element("line", x1=at, x2=at, y1=y.start, y2=y.end, class_="grid"))
        parts.append(element("text", tick(mark), x=at, y=y.start + 18, text_anchor="middle", class_="mark"))
    for mark in y.marks():
        at = y.at(mark)
        parts.append(element("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid"))
        parts.append(element("text", tick(mark), x=x.start - 8, y=at + 4, text_anchor="end", class_="mark"))
    parts.append(element("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    middle_x, middle_y = (x.start + x.end) / 2, (y.start + y.end) / 2
    parts.append(element("text", x_label, x=middle_x, y=HEIGHT - 8, text_anchor="middle", class_="label"))
    turned = f"rotate(-90 14 {middle_y:.1f})"
    parts.append(element("text", y_label, x=14, y=middle_y, text_anchor="middle", transform=turned, class_="label"))
    return join(parts)


def picture(title: str, *parts: Markup, height: float = HEIGHT) -> Markup:
    """An SVG of the usual width that scales with its place; ``title`` is for screen readers."""
    box = f"0 0 {WIDTH:.0f} {height:.0f}"
    return element("svg", *parts, viewBox=box, role="img", aria_label=title, class_="plot")


def _round_marks(high: float) -> list[float]:
    power = 10.0 ** math.floor(math.log10(high / 4)) if high > 4 else 1.0
    step = next((s * power for s in (1, 2, 5, 10) if high / (s * power) <= 6), 10 * power)
    return [step * number for number in range(int(high / step) + 1)]


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return max(step * power for step in _STEPS if step * power <= value * 1.0001)


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return min(step * power for step in (*_STEPS, 10.0) if step * power >= value * 0.9999)
