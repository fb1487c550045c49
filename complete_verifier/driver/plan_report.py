"""`abcrown --plan`: the table of placements with what each needs, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from complete_verifier.config import LoadedConfig
from complete_verifier.driver.boundary import OK
from complete_verifier.driver.choices import choose_device
from complete_verifier.driver.planning import UNDECIDED, Entry, Plan, Question, make_plan, place_of
from complete_verifier.driver.seat import Seat
from complete_verifier.reporting.display import Display
from complete_verifier.reporting.results import prepare_output, write_atomically

MIB = 2**20
_WIDTH = 160
_PARTS = ("weights", "blocks", "bounds", "rows", "domains", "tile")
_WORK = (("crown", "CROWN pass"), ("alpha", "alpha iteration"), ("bab", "BaB round"))


def print_plan(loaded: LoadedConfig, display: Display) -> int:
    """Predict, print and write what `--plan` asks for; returns the exit code.

    Raises:
        UserError: the network, the property or the settings cannot be used.
    """
    options = loaded.options
    target = None if options.plan_json is None else Path(options.plan_json)
    if target is not None:
        prepare_output(target, "--plan_json")
    seat = Seat.of_environment()
    device, _ = choose_device(loaded)
    world = options.world_size or (1 if seat is None else seat.world_size)
    local = 1 if seat is None else seat.local_world_size
    place = place_of(loaded, device, world, local)
    undecided = UNDECIDED if options.undecided is None else options.undecided / 100
    plan = make_plan(Question.of(loaded), loaded.config.parallel.settings(), place, undecided)
    for line in _lines(plan):
        display.result(line)
    if target is not None:
        write_atomically(target, (json.dumps(as_json(plan), indent=2) + "\n").encode())
    return OK


def _lines(plan: Plan) -> Iterator[str]:
    place = plan.place
    ranks = f"{place.world} rank{'' if place.world == 1 else 's'}"
    yield f"{plan.network}: {ranks}, each with {place.memory / 2**30:.1f} GiB ({place.device})"
    yield f"assumed: {plan.undecided:.0%} of the neurons undecided (--undecided); sizes in MiB of one rank"
    yield from _table(plan).splitlines()
    most = max((entry.prediction.growth for entry in plan.entries), default=0)
    if most:
        yield (
            "without bab.max_iterations a search goes on: open sub-problems may take up to"
            f" {most / MIB:.0f} MiB more of a device, then the host's memory"
        )
    yield plan.choice.line


def _table(plan: Plan) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("placement", "rows", "domains", "fits", "peak", *_PARTS):
        table.add_column(name, justify="left" if name == "placement" else "right")
    work = [(key, title) for key, title in _WORK if any(key in e.prediction.work for e in plan.entries)]
    for _, title in work:
        table.add_column(f"{title}: compute + traffic", justify="right")
    for entry in plan.entries:
        table.add_row(*_cells(entry), *(_work_cell(entry, key) for key, _ in work))
    console = Console(file=StringIO(), width=_WIDTH, no_color=True)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def _cells(entry: Entry) -> Iterator[str]:
    axes, parts = entry.prediction.axes, entry.prediction.parts
    yield entry.name
    yield f"1/{axes.rows}" if axes.rows > 1 else "all"
    yield f"1/{axes.domains}" if axes.domains > 1 else "all"
    yield "yes" if entry.fits else "no"
    yield f"{entry.prediction.peak / MIB:.0f}"
    for name in _PARTS:
        yield f"{parts[name] / MIB:.0f}"


def _work_cell(entry: Entry, key: str) -> str:
    work = entry.prediction.work.get(key)
    if work is None:
        return ""
    moved = work.gathered + work.exchanged + work.copied
    return f"{_seconds(work.compute_s)} + {_seconds(work.traffic_s)} ({moved / MIB:.0f} MiB)"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 10 else f"{1e3 * value:.1f} ms"


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values; bytes as MiB."""
    place = plan.place
    return {
        "network": plan.network,
        "world_size": place.world,
        "memory_gib": place.memory / 2**30,
        "device": place.device,
        "undecided": plan.undecided,
        "choice": {"mode": plan.choice.settings.mode, "reason": plan.choice.reason},
        "placements": {entry.name: _entry_json(entry) for entry in plan.entries},
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    prediction = entry.prediction
    return {
        "mode": prediction.mode,
        "axes": {axis: getattr(prediction.axes, axis) for axis in ("weights", "rows", "domains")},
        "fits": entry.fits,
        "peak_mib": prediction.peak / MIB,
        "host_mib": prediction.host / MIB,
        "growth_mib": prediction.growth / MIB,
        "parts_mib": {name: size / MIB for name, size in prediction.parts.items()},
        "work": {
            key: {
                "gathered_mib": work.gathered / MIB,
                "exchanged_mib": work.exchanged / MIB,
                "copied_mib": work.copied / MIB,
                "calls": work.calls,
                "compute_s": work.compute_s,
                "traffic_s": work.traffic_s,
            }
            for key, work in prediction.work.items()
        },
    }
