"""Pictures of figures: stacked bars and curves, drawn by matplotlib where it is installed."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.parallel.experiments.kinds import Bars, Chart, Curves

logger = logging.getLogger(__name__)


def draw(charts: Iterable[Chart], folder: Path, stem: str) -> Iterator[Path]:
    """Write ``folder``/``stem``_NAME.png for each chart that has something to show."""
    held = [chart for chart in charts if (chart.bars if isinstance(chart, Bars) else chart.lines)]
    if not held:
        return
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("matplotlib is not installed: no pictures")
        return
    for chart in held:
        figure = _bars(chart) if isinstance(chart, Bars) else _curves(chart)
        path = folder / f"{stem}_{chart.name}.png"
        figure.savefig(path, dpi=120)
        yield path


def _figure(width: float, height: float, title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no display, no state

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def _bars(chart: Bars) -> Any:
    """One bar under the other, so that long labels can be read."""
    figure, axes = _figure(9, 1.5 + 0.28 * len(chart.bars), chart.title)
    names = list(dict.fromkeys(name for bar in chart.bars for name in bar.parts))
    places = range(len(chart.bars))
    left = [0.0] * len(chart.bars)
    for name in names:
        sizes = [bar.parts.get(name, 0.0) for bar in chart.bars]
        axes.barh(places, sizes, left=left, label=name)
        left = [before + size for before, size in zip(left, sizes, strict=True)]
    axes.set_yticks(places, [bar.label for bar in chart.bars])
    axes.invert_yaxis()
    axes.set_xlabel(chart.unit)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _curves(chart: Curves) -> Any:
    figure, axes = _figure(7, 5, chart.title)
    for name, points in chart.lines.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    axes.set_xticks(sorted({x for points in chart.lines.values() for x, _ in points}))
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
