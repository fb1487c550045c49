"""Clipped boxes hold every input that takes a domain's signs; a domain is empty only where no input does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from auto_LiRPA.bounds.intermediate import Intermediate
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.values import Box, Interval, LpBall
from complete_verifier.bab import clip, input_lines
from complete_verifier.bab.clip import Clipped, Clipper, ClipSettings, make_clipper
from complete_verifier.bab.domains import Domains
from complete_verifier.bab.input_lines import InputLines, make_input_lines
from complete_verifier.branching.layout import root_columns
from complete_verifier.problem import Clauses
from tests.bab.problems import (
    KINDS,
    Setup,
    box_around,
    clauses,
    column_values,
    domains,
    make_problem,
    network,
    sample,
    set_up,
)


def case_of(kind: str, seed: int, neurons: int = 24, regions: int = 1) -> Setup | None:
    """The parts of a search on any clauses; None where nothing is unstable. A fourth of the seeds is in float64."""
    gen = np.random.default_rng([seed, len(kind)])
    dtype = torch.float64 if seed % 4 == 0 else torch.float32
    net = network(kind, gen, dtype, neurons)
    boxes = [box_around(gen, net.graph.input_shape, dtype) for _ in range(regions)]
    box = Box(torch.cat([b.lower for b in boxes]), torch.cat([b.upper for b in boxes]))
    rows = [(gen.normal(size=(1, 3)), gen.normal(size=1)) for _ in boxes]
    problem = make_problem(net.graph, box, clauses(rows, dtype, region=range(regions)))
    if seed % 2:  # tiles of a few rows, the last one ragged
        problem = replace(problem, context=DistributedContext.single(settings=ParallelSettings(tile_rows=3)))
    setup = set_up(problem)
    return setup if setup.layout.width else None


def clause_tensors(setup: Setup) -> tuple[Tensor, ...]:
    spec = setup.problem.clauses
    return spec.c, spec.rhs, spec.region, spec.attainable_rhs


def clipper_of(setup: Setup, **settings: object) -> Clipper:
    found = make_clipper(setup.problem, setup.root, setup.layout, ClipSettings(**settings))  # type: ignore[arg-type]
    assert found is not None
    return found


def region_points(setup: Setup, region: int, count: int, gen: torch.Generator) -> Tensor:
    """Points of one region ``[count, *input]``."""
    return sample(setup.problem.region.interval().rows(region, region + 1), count, gen)  # type: ignore[arg-type]


def family(setup: Setup, gen: torch.Generator, share: float, count: int = 40) -> tuple[Domains, Tensor, Tensor]:
    """Domains that random inputs lie in: the domains, the inputs ``[D, *input]`` and their pre-activations ``[D, U]``.

    Each domain splits about ``share`` of the neurons that both its region and its input leave a choice.
    """
    spec = setup.problem.clauses
    clause = torch.arange(count) % len(spec.region)
    x = torch.cat([region_points(setup, int(spec.region[c]), 1, gen) for c in clause])
    z = column_values(setup, x)
    taken = torch.rand(z.shape, generator=gen) < share
    sign = torch.where(taken & (z.abs() > 1e-4), z.sign(), 0.0).to(torch.int8)
    return domains(setup, clause, sign, gen), x, z


def check(setup: Setup, batch: Domains, z: Tensor, found: Clipped, before: tuple[Tensor, Tensor]) -> None:
    tolerance = 2e-5 if z.dtype == torch.float32 else 1e-9
    assert not bool(found.empty.any()), "an input lies in each of these domains"
    assert bool((found.lower <= z + tolerance).all()), float((found.lower - z).max())
    assert bool((found.upper >= z - tolerance).all()), float((z - found.upper).max())
    assert bool((found.lower >= before[0]).all() & (found.upper <= before[1]).all()), "looser than before"
    assert bool((found.lower <= found.upper).all())


def root_of(setup: Setup, batch: Domains) -> tuple[Tensor, Tensor]:
    box, region = root_columns(setup.layout, setup.root.intermediate), setup.problem.clauses.region[batch.clause]
    return box.lower[region], box.upper[region]


@pytest.mark.parametrize("with_input", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_boxes_hold_the_inputs_of_the_domain(kind: str, with_input: bool, count: Callable[[int, int], int]) -> None:
    gained = decided = 0
    for seed in range(count(6, 300)):
        setup = case_of(kind, seed, regions=1 + seed % 2)
        if setup is None:
            continue
        gen = torch.Generator().manual_seed(seed)
        clipper = clipper_of(setup, with_input=with_input, by_distance=seed % 3 == 0, top=(20, 2)[seed % 4 == 1])
        batch, _, z = family(setup, gen, 0.4)
        before = root_of(setup, batch)
        coef = None if seed % 2 else torch.randn(z.shape, generator=gen).to(z)
        found = clipper.tighten(batch, coef)
        check(setup, batch, z, found, before)
        gained += int((found.lower > before[0] + 1e-3).sum() + (found.upper < before[1] - 1e-3).sum())
        open_before = (before[0] < 0) & (before[1] > 0) & (batch.sign == 0)
        decided += int((open_before & ((found.lower >= 0) | (found.upper <= 0))).sum())
        # children inherit their parent's boxes, and have more splits of the same inputs
        sign = torch.where((torch.rand(z.shape, generator=gen) < 0.5) & (z.abs() > 1e-4), z.sign(), batch.sign)
        children = replace(batch, sign=sign.to(torch.int8), box_lower=found.lower, box_upper=found.upper)
        check(setup, children, z, clipper.tighten(children), (found.lower, found.upper))
    assert gained > 200, "clipping tightens"
    assert decided > 10, "and decides neurons that were not split"


@pytest.mark.parametrize("kind", KINDS)
def test_the_cut_input_box_holds_the_inputs_of_the_domain(kind: str) -> None:
    smaller = 0
    for seed in range(5):
        setup = case_of(kind, seed, regions=1 + seed % 2)
        if setup is None:
            continue
        batch, x, _ = family(setup, torch.Generator().manual_seed(seed), 0.4)
        clipper = clipper_of(setup)
        low, high, empty = clipper.input_box(batch)
        moving = x.flatten(1)[:, clipper.moving]
        tolerance = 2e-5 if x.dtype == torch.float32 else 1e-9
        assert not bool(empty.any())
        assert bool((low <= moving + tolerance).all() & (high >= moving - tolerance).all())
        box = setup.problem.region.interval()
        whole = (box.upper - box.lower).flatten(1)[setup.problem.clauses.region[batch.clause]][:, clipper.moving]
        smaller += int((high - low < 0.9 * whole).sum())
    assert smaller > 20


def test_a_domain_is_empty_only_where_no_input_takes_its_signs() -> None:
    """Splits of the first layer are linear in the input, so a linear program decides exactly."""
    empty = feasible = 0
    for seed in range(6):
        setup = case_of("mlp", seed)
        if setup is None or setup.problem.graph.nodes[setup.layout.layers[0].source].id != 1:
            continue
        layer, gen = setup.layout.layers[0], torch.Generator().manual_seed(seed)
        sign = torch.zeros(30, setup.layout.width, dtype=torch.int8)
        sign[:, : layer.stop] = torch.randint(0, 2, (30, layer.stop), generator=gen).mul(2).sub(1).to(torch.int8)
        sign[:, : layer.stop] *= torch.rand(30, layer.stop, generator=gen) < 0.8
        batch = domains(setup, torch.zeros(30, dtype=torch.long), sign, gen)
        region = setup.problem.region.interval()
        ends = torch.stack([region.lower[0], region.upper[0]], 1).double().numpy()
        origin = torch.zeros(1, len(ends), dtype=region.lower.dtype)
        offset = column_values(setup, origin)[0, : layer.stop]
        units = torch.eye(len(ends), dtype=region.lower.dtype)
        matrix = (column_values(setup, units)[:, : layer.stop] - offset).T.double().numpy()
        found = [clipper_of(setup, with_input=w).tighten(batch).empty.tolist() for w in (False, True)]
        for row in range(30):
            s = sign[row, : layer.stop].double().numpy()
            limits = s * offset.double().numpy()
            program = linprog(np.zeros(len(ends)), -s[:, None] * matrix, limits, bounds=ends, method="highs")
            assert program.status == 2 or not (found[0][row] or found[1][row]), "an input takes these signs"
            empty += found[0][row] + found[1][row]
            feasible += program.status == 0
    assert empty > 20
    assert feasible > 20


@pytest.mark.parametrize("kind", KINDS)
def test_any_signs_give_ordinary_boxes(kind: str) -> None:
    """Domains that no input may lie in: boxes are neither NaN nor crossed, and sampled inputs do not contradict."""
    for seed in range(6):
        setup = case_of(kind, seed)
        if setup is None:
            continue
        gen = torch.Generator().manual_seed(seed)
        sign = torch.randint(-1, 2, (60, setup.layout.width), generator=gen).to(torch.int8)
        batch = domains(setup, torch.zeros(60, dtype=torch.long), sign, gen)
        z = column_values(setup, region_points(setup, 0, 500, gen))
        for settings in ({}, {"with_input": True}, {"most": 2}):
            found = clipper_of(setup, **settings).tighten(batch)
            assert bool((found.lower <= found.upper).all())
            inside = ((z.unsqueeze(0).sign() * batch.sign.unsqueeze(1)) >= 0).all(2)
            assert not bool((inside.any(1) & found.empty).any())
            low, high = found.lower.unsqueeze(1) - 2e-5, found.upper.unsqueeze(1) + 2e-5
            assert bool((((z >= low) & (z <= high)).all(2) | ~inside).all())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_bound_their_neurons(kind: str) -> None:
    for seed in range(5):
        setup = case_of(kind, seed, regions=2)
        if setup is None:
            continue
        lines = make_input_lines(setup.problem, setup.root, setup.layout)
        assert lines is not None
        assert lines.width == setup.layout.width
        assert not bool(lines.coef[:, -1].any() | lines.bias[:, -1].any())
        tolerance = 2e-5 if lines.coef.dtype == torch.float32 else 1e-9
        for region in range(2):
            x = region_points(setup, region, 300, torch.Generator().manual_seed(seed))
            z = column_values(setup, x)
            moving = x.flatten(1)[:, lines.moving]
            value = moving @ lines.coef[region].T + lines.bias[region]
            assert bool((value[:, : lines.width] <= z + tolerance).all())
            assert bool((value[:, lines.width : -1] <= -z + tolerance).all())
            assert bool(((moving - lines.center[region]).abs() <= lines.radius[region] + 1e-6).all())
            # not far below either: a row whose neuron is linear in the input is the neuron
            if region == 0 and setup.layout.layers[0].source == 1:
                stop = setup.layout.layers[0].stop
                torch.testing.assert_close(value[:, :stop], z[:, :stop], rtol=1e-4, atol=1e-4)


def test_of_every_layer_the_neurons_that_matter_most_are_tightened() -> None:
    changed_in: set[int] = set()
    for seed in range(1, 8):
        setup = case_of("mlp", seed)
        if setup is None:
            continue
        gen = torch.Generator().manual_seed(seed)
        batch, _, z = family(setup, gen, 0.5)
        lower, upper = root_of(setup, batch)
        coef = -torch.rand(z.shape, generator=gen).to(z)
        found = clipper_of(setup, top=1).tighten(batch, coef)
        score = torch.where(batch.sign == 0, -lower * upper / (upper - lower) * -coef, -1.0)
        changed = (found.lower > lower) | (found.upper < upper)
        for number, layer in enumerate(setup.layout.layers):
            part = slice(layer.start, layer.stop)
            best = score[:, part].argmax(1, keepdim=True)
            open_ones = (score[:, part] > 0).any(1)
            others = changed[:, part].scatter(1, best, False)[open_ones]
            assert not bool(others.any())
            if changed[:, part].gather(1, best)[open_ones].any():
                changed_in.add(number)
    assert changed_in == {0, 1, 2}


def test_tiles_do_not_change_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = case_of("mlp", 2)
    assert setup is not None
    batch, _, _ = family(setup, torch.Generator().manual_seed(0), 0.4)
    clipper = clipper_of(setup, with_input=True)
    whole, box = clipper.tighten(batch), clipper.input_box(batch)
    monkeypatch.setattr(clip, "TILE_ELEMENTS", 1)
    parts, box_parts = clipper.tighten(batch), clipper.input_box(batch)
    for name in ("lower", "upper", "empty"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-5)
    for one, other in zip(box, box_parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_nothing_waits_for_the_device() -> None:
    """On the device `meta` tensors have no values: whatever would wait for one fails."""
    setup = case_of("mlp", 2)
    assert setup is not None
    lines = make_input_lines(setup.problem, setup.root, setup.layout)
    assert lines is not None
    batch, _, z = family(setup, torch.Generator().manual_seed(0), 0.4)
    away = InputLines(*(getattr(lines, name).to("meta") for name in InputLines.__slots__))
    problem = replace(setup.problem, clauses=Clauses(*(t.to("meta") for t in clause_tensors(setup))))
    boxes = {k: Interval(b.lower.to("meta"), b.upper.to("meta")) for k, b in setup.root.intermediate.boxes.items()}
    layers = tuple(replace(layer, index=layer.index.to("meta")) for layer in setup.layout.layers)
    root = replace(setup.root, intermediate=Intermediate(boxes, {}, ()))
    clipper = Clipper(problem, root, replace(setup.layout, layers=layers), ClipSettings(with_input=True), away)
    there = batch.rebuild(tuple(t.to("meta") for t in batch.tensors()))
    found = clipper.tighten(there, z.to("meta"), most=5)
    assert found.lower.shape == z.shape
    assert found.empty.shape == (len(batch),)


def test_without_splits_nothing_changes() -> None:
    setup = case_of("mlp", 2)
    assert setup is not None
    batch, _, _ = family(setup, torch.Generator().manual_seed(0), 0.0)
    found, empty = clipper_of(setup).clip(clipper_of(setup).opened(batch))
    lower, upper = root_of(setup, batch)
    assert torch.equal(found.box_lower, lower)
    assert torch.equal(found.box_upper, upper)
    assert not bool(empty.any())


def test_a_ball_is_clipped_as_its_box() -> None:
    setup = case_of("mlp", 2)
    assert setup is not None
    box = setup.problem.region.interval()
    center, radius = (box.lower + box.upper) / 2, ((box.upper - box.lower) / 2).flatten(1)
    eps = radius.where(radius > 0, torch.inf).amin(1)
    ball = set_up(replace(setup.problem, region=LpBall(center, eps, 2.0)))
    gen = torch.Generator().manual_seed(1)
    direction = torch.randn(40, center.shape[1], generator=gen).to(center)
    x = center + direction / direction.norm(dim=1, keepdim=True) * eps * torch.rand(40, 1, generator=gen).to(center)
    z = column_values(ball, x)
    sign = torch.where((torch.rand(z.shape, generator=gen) < 0.4) & (z.abs() > 1e-4), z.sign(), 0.0).to(torch.int8)
    batch = domains(ball, torch.zeros(40, dtype=torch.long), sign, gen)
    check(ball, batch, z, clipper_of(ball).tighten(batch), root_of(ball, batch))


def test_what_does_not_fit_is_not_clipped(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    setup = case_of("mlp", 2)
    assert setup is not None
    assert make_clipper(setup.problem, setup.root, setup.layout, ClipSettings(top=0)) is None
    monkeypatch.setattr(input_lines, "MAX_BYTES", 10)
    assert make_clipper(setup.problem, setup.root, setup.layout, ClipSettings()) is None
    assert "clipping is off" in caplog.text
