"""Joint alpha-CROWN (`keep`) of the ResNet-like net of the peers, rows sharded: what is stored for rows, peak, time.

    python benchmarks/parallel/alpha_keep.py --width 16 --out figures.jsonl
    torchrun --nproc_per_node=2 benchmarks/parallel/alpha_keep.py --width 16 --out figures.jsonl

Width 32 is the net that the peer cannot hold in 78 GiB. Row state: bytes of the storages of slopes, of Adam's moments,
of the saved best slopes and of the bounds, each storage once, when the optimisation ends; the coefficients that are
kept between a bounding pass and its gradient are told apart. One run is timed, after a warm-up of one iteration.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from auto_LiRPA.bounds import alpha as engine  # noqa: E402
from auto_LiRPA.bounds.methods import Method, Query, compute  # noqa: E402
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings  # noqa: E402
from auto_LiRPA.parallel.numerics import full_precision  # noqa: E402
from auto_LiRPA.values import Box  # noqa: E402
from benchmarks.bounds import margins  # noqa: E402
from benchmarks.parallel import building, measuring  # noqa: E402

MIB = measuring.MIB


def main() -> None:
    """One width on as many ranks as there are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--interm", choices=("keep", "stream", "fixed"), default="keep")
    parser.add_argument("--mode", choices=measuring.MODES, help="default: single on one rank, rows on several")
    parser.add_argument("--tile", default="auto")
    parser.add_argument("--eps", type=float, default=1 / 255)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop iterating after so long")
    measuring.add_common(parser)
    options = parser.parse_args()
    several = measuring.world_size() > 1
    mode = options.mode or ("rows" if several else "single")
    context = measuring.join(measuring.settings_of(mode, options.tile, options.block_mib, not options.no_prefetch))
    with torch.no_grad(), full_precision():
        graph, store, module = building.resnet(context, options.width, options.classes)
        gen = torch.Generator().manual_seed(1)
        x = torch.rand(1, 3, 32, 32, generator=gen)
        label = int(module(x).argmax())
        spec = margins(options.classes, label).to(context.device)
        x = x.to(context.device)
        region = Box(x - options.eps, x + options.eps)
        query = Query(c=spec, upper=False, seconds_left=_left(options.seconds))
        settings = AlphaSettings(mode=options.interm, iterations=options.iterations, lr_alpha=0.1)
        bounds = BoundSettings(compare_with_ibp=False, alpha=settings)
        brief = replace(bounds, alpha=replace(settings, iterations=1))

        def run(chosen: BoundSettings = bounds) -> Any:
            return compute(graph, region, query, Method.ALPHA_CROWN, context, chosen)

        crown = compute(graph, region, replace(query, seconds_left=None), Method.CROWN, context, bounds)
        assert crown.lower is not None
        crown_sum = float(crown.lower.bound.double().sum())
        del crown
        run(brief)
        held: dict[str, int] = {}
        result: list[Any] = []
        with watched(held):
            mine = measuring.measure(context, lambda: result.append(run()), 1, 0)
    lower = result[-1].lower.bound
    mine |= {"digest": measuring.digest([lower]), "weight_mib": round(store.weight_bytes() / MIB, 2)}
    mine["row_state_mib"] = {name: round(size / MIB, 2) for name, size in held.items()}
    mine["stored_mib"] = round(sum(size for name, size in held.items() if name != "kept passes") / MIB, 2)
    head = {
        "what": "alpha_keep",
        "mode": mode,
        "width": options.width,
        "interm": options.interm,
        "iterations": options.iterations,
        "tile": options.tile,
        "unstable": _unstable(result[-1].boxes),
        "crown_sum": crown_sum,
        "lb_sum": float(lower.double().sum()),
    }
    told = measuring.tell(context, head, mine, options.out)
    if told is not None:
        print("stored for rows, MiB a rank:", [one["row_state_mib"] for one in told["ranks"]])
    context.close()


def _left(seconds: float) -> Any:
    ends = time.monotonic() + seconds
    return None if seconds == float("inf") else lambda: ends - time.monotonic()


def _unstable(boxes: Any) -> int:
    return sum(int(((box.lower < 0) & (box.upper > 0)).sum()) for box in boxes.values())


@contextmanager
def watched(held: dict[str, int]) -> Iterator[None]:
    """Notes what a joint optimisation stores when it ends."""
    joint, best = engine._Joint, engine._Best
    run = joint.run
    made: list[Any] = []

    class Noted(best):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    def noted(self: Any, *arguments: Any) -> Any:
        made.clear()
        result = run(self, *arguments)
        held["slopes"] = measuring.storage_bytes(self.slopes)
        held["moments"] = measuring.storage_bytes(self.moments)
        held["saved slopes and bounds of the rows"] = measuring.storage_bytes(made[-1]) if made else 0
        held["bounds of neurons"] = measuring.storage_bytes(self.best_boxes)
        held["kept passes"] = measuring.storage_bytes(self.passes)
        made.clear()
        return result

    joint.run, engine._Best = noted, Noted  # type: ignore[method-assign, misc, assignment]
    try:
        yield
    finally:
        joint.run, engine._Best = run, best  # type: ignore[method-assign, misc]


if __name__ == "__main__":
    main()
