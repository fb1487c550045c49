"""Time limits within bounding passes: they stop at a tile, and what an optimisation has reached is kept and sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.alpha import alpha_crown
from auto_LiRPA.bounds.backward import spec_rows
from auto_LiRPA.bounds.final import final_lower, spec_tiles
from auto_LiRPA.bounds.intermediate import crown_boxes
from auto_LiRPA.bounds.optimize import optimize_rows
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings, IntermAlpha
from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from tests.bounds.test_order import least
from tests.bounds.test_order import question as random_question
from tests.bounds.test_tiles import question

SETTINGS = BoundSettings(alpha=AlphaSettings(iterations=12, lr_alpha=0.2, patience=100))


def clock(looks: int) -> tuple[Callable[[], float], list[int]]:
    """Time that is up after so many looks at it, and the number of looks so far."""
    seen = [0]

    def seconds_left() -> float:
        seen[0] += 1
        return 1.0 if seen[0] <= looks else 0.0

    return seconds_left, seen


def timed(looks: int, tile_rows: int = 2) -> tuple[DistributedContext, list[int]]:
    left, seen = clock(looks)
    base = DistributedContext.single(settings=ParallelSettings(tile_rows=tile_rows))
    return replace(base, seconds_left=left), seen


def test_a_pass_stops_at_the_next_tile() -> None:
    """The clock is looked at once a tile, and the tile after the deadline does not run."""
    graph, region, _ = question("mlp", 16.0)
    free, _ = timed(10**9)
    with torch.no_grad():
        crown_boxes(graph, region, free, SETTINGS)
        total = free.counters.tiles
        assert total > 10
        for looks in (0, 1, total // 2, total - 1):
            context, _ = timed(looks)
            with pytest.raises(OutOfTime):
                crown_boxes(graph, region, context, SETTINGS)
            assert context.counters.tiles == looks
        context, seen = timed(total)
        crown_boxes(graph, region, context, SETTINGS)
        assert seen[0] == total


def test_final_rows_stop_at_the_next_tile() -> None:
    graph, region, c = question("mlp", 16.0)
    with torch.no_grad():
        middle = crown_boxes(graph, region, timed(10**9)[0], SETTINGS)
        context, _ = timed(1)
        with pytest.raises(OutOfTime):
            final_lower(graph, spec_tiles(graph, c, context, 2), region, middle.relaxations, context)
    assert context.counters.tiles == 1


def test_no_deadline_never_stops() -> None:
    DistributedContext.single().check_time()


@pytest.mark.parametrize("mode", ["keep", "fixed", "stream"])
@pytest.mark.parametrize("kind", ["mlp", "cnn", "residual"])
def test_an_optimisation_that_runs_out_of_time_is_sound(kind: str, mode: IntermAlpha) -> None:
    """Stopped after any number of looks: OutOfTime before there is anything; else no looser than CROWN, and sound."""
    net, region, c = random_question(kind, 3)
    gen = torch.Generator().manual_seed(0)
    settings = replace(SETTINGS, alpha=replace(SETTINGS.alpha, mode=mode))
    ended, finished = 0, 0
    with torch.no_grad():
        free, _ = timed(10**9)
        base = crown_boxes(net.graph, region, free, SETTINGS)
        spec = spec_tiles(net.graph, c, free, 2)
        crown = final_lower(net.graph, spec, region, base.relaxations, free)
        reached = least(net, region, c, gen)
        for looks in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89):
            context, _ = timed(looks)
            start = None if mode == "stream" else base
            try:
                found = alpha_crown(
                    net.graph, region, c, context, settings, seconds_left=context.seconds_left, intermediate=start
                )
            except OutOfTime:
                ended += 1
                continue
            finished += 1
            assert bool((found.lower <= reached + 1e-9).all())
            assert found.lower.isfinite().all()
            if mode != "stream":
                assert bool((found.lower >= crown - 1e-9).all())
    assert finished > 0 and (mode != "keep" or ended > 0)


def test_rows_stop_between_iterations() -> None:
    """Without a deadline 12 evaluations; with one after three looks, three or four."""
    graph, region, c = question("residual", 16.0)
    with torch.no_grad():
        relaxations = crown_boxes(graph, region, timed(10**9)[0], SETTINGS).relaxations
        rows = spec_rows(graph, c)
        whole = optimize_rows(graph, rows, region, relaxations, SETTINGS.alpha)
        left, _ = clock(3)
        part = optimize_rows(graph, rows, region, relaxations, SETTINGS.alpha, seconds_left=left)
    assert whole.iterations == 12 and part.iterations == 4
    assert bool((whole.lower >= part.lower).all())


def test_rows_that_are_proven_end_the_loop() -> None:
    """All elements proven after the first evaluation: no second one; one open element: all of them."""
    graph, region, c = question("mlp", 16.0)
    with torch.no_grad():
        relaxations = crown_boxes(graph, region, timed(10**9)[0], SETTINGS).relaxations
        rows = spec_rows(graph, c)
        for proven, iterations in (([True, True], 1), ([True, False], 12)):

            def answer(lower: Tensor, proven: list[bool] = proven) -> Tensor:
                return torch.tensor(proven)

            found = optimize_rows(graph, rows, region, relaxations, SETTINGS.alpha, proven=answer)
            assert found.iterations == iterations
