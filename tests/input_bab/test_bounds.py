"""Bounds of boxes: sound on samples for every method, equal to the engine's, inherited facts, and nothing from NaN."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import complete_verifier.input_bab.bounding as bounding
import complete_verifier.input_bab.ragged as ragged
from auto_LiRPA.bounds.intermediate import crown_boxes
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.operators.smooth import Sigmoid
from auto_LiRPA.values import Box, Interval
from complete_verifier.input_bab.bounding import Bounded, Bounder
from complete_verifier.input_bab.domains import Domains
from complete_verifier.input_bab.ragged import RaggedCrown, is_plain
from complete_verifier.input_bab.settings import ClipSettings, InputBabSettings
from tests.bab.problems import Case
from tests.input_bab.cases import all_groups, input_case, points_in, root_domains
from tests.nets import Builder, dense_layers

METHODS = ("crown", "forward+crown", "alpha-crown", "crown-ibp", "ibp", "forward")


def bounder_of(case: Case, engine: bool = False, **changes: object) -> Bounder:
    """``engine``: as if the network were not plain."""
    settings = InputBabSettings(**{"alpha_iterations": 3, "alpha_lr": 0.3, **changes})  # type: ignore[arg-type]
    most = 1 if settings.clip.complete else 8
    found = Bounder(case.problem, all_groups(case.problem, most), settings)
    if engine:
        found._ragged, found._phased = None, ()
    return found


def values(case: Case, bounder: Bounder, domains: Domains, x: Tensor) -> Tensor:
    """Rows minus rhs ``[N, D, G, R]`` at points ``[N, D, m]``, in float64 by torch's own products where it can be."""
    y = evaluate(case.problem.graph, x.flatten(0, 1).reshape(-1, *case.problem.graph.input_shape)).flatten(1)
    y = y.unflatten(0, x.shape[:2])
    return torch.einsum("dgro,ndo->ndgr", bounder.groups.c[domains.group], y) - bounder.groups.rhs[domains.group]


@pytest.mark.parametrize("engine", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["mlp", "cnn", "residual"])
def test_bounds_hold_at_every_sample(kind: str, method: str, engine: bool) -> None:
    """Row bounds, margins of clauses, and the linear functions, which everything else is made from."""
    gen = torch.Generator().manual_seed(1)
    for seed in (0, 1, 3):
        case = input_case(kind, seed, regions=2)
        bounder = bounder_of(case, engine, bound_method=method)
        domains = root_domains(case.problem, bounder, 12, gen)
        with torch.no_grad():
            found = bounder.bound(domains)
            x = points_in(domains.lower, domains.upper, 300, gen)
            rows = values(case, bounder, domains, x)
        real = bounder.groups.real[domains.group]
        slack = 1e-4 if rows.dtype == torch.float32 else 1e-9
        assert bool(((found.gap <= rows.amin(0) + slack) | ~real).all())
        worst = torch.where(real, rows, -torch.inf).amax(-1)
        assert bool(((found.margin <= worst.amin(0) + slack) | ~domains.open).all())
        assert bool(found.linear.any()) == (method not in ("ibp", "forward"))
        line = torch.einsum("dgrm,ndm->ndgr", found.coef, x) + found.constant
        used = real & found.linear[:, None, None]
        assert bool(((line <= rows + slack) | ~used).all())


@pytest.mark.parametrize("complete", [False, True])
def test_half_spaces_keep_every_counterexample(complete: bool) -> None:
    """Bounds under half-spaces hold at the samples that are inside them, and are no looser than without."""
    gen = torch.Generator().manual_seed(2)
    clip = ClipSettings(enabled=True, complete=complete)
    tighter = 0
    for seed in (1, 2, 5, 6):
        case = input_case("mlp", seed)
        for engine in (False, True):
            bounder = bounder_of(case, engine, clip=clip)
            domains = root_domains(case.problem, bounder, 10, gen)
            with torch.no_grad():
                x = points_in(domains.lower, domains.upper, 400, gen)
                # thresholds in the middle of what occurs: about half of the samples satisfy a row
                middle = values(case, bounder, domains, x).flatten(0, 1).median(0).values
                bounder.groups = replace(bounder.groups, rhs=bounder.groups.rhs + middle * bounder.groups.real)
                first = bounder.bound(domains)
                half = bounder.half_of_rows(domains, first)[:, 0]
                again = bounder.bound(replace(domains, half=half) if complete else domains)
                rows = values(case, bounder, domains, x)
            inside = torch.einsum("dcm,ndm->ndc", half[..., :-1], x) + half[..., -1] <= 0
            allowed = inside.all(-1)[..., None, None] if complete else torch.ones_like(rows, dtype=torch.bool)
            satisfied = (rows[:, :, 0] <= 0) & bounder.groups.real[domains.group][:, 0]
            assert int(satisfied.sum()) > 100
            assert bool((inside | ~satisfied).all()), "a point that satisfies a row is outside of its half-space"
            assert bool(((again.gap <= rows + 1e-4) | ~allowed | ~bounder.groups.real[domains.group]).all())
            tighter += int((again.gap > first.gap + 1e-4).sum())
    assert (tighter > 0) == complete


@pytest.mark.parametrize("kind", ["mlp", "cnn", "residual"])
def test_ragged_crown_is_the_engines(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the engine bounds the same neurons, one box at a time, both give the same boxes; tiles change nothing."""
    gen = torch.Generator().manual_seed(3)
    case = input_case(kind, 4)
    bounder = bounder_of(case)
    domains = root_domains(case.problem, bounder, 6, gen)
    crown = RaggedCrown(case.problem.graph)
    region = bounder.region(domains)
    for size in (2**20, 1):
        monkeypatch.setattr(ragged, "_TILE_BYTES", size)
        with torch.no_grad():
            found = crown.inner(region.interval(), bounder._least(domains), {}).boxes
        for d in range(6):
            alone = Box(region.lower[d : d + 1], region.upper[d : d + 1])
            with torch.no_grad():
                known = crown_boxes(case.problem.graph, alone, case.problem.context, case.problem.bounds).boxes
            for node, box in known.items():
                torch.testing.assert_close(found[node].lower[d : d + 1], box.lower, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(found[node].upper[d : d + 1], box.upper, rtol=1e-4, atol=1e-5)


def test_ragged_crown_bounds_smooth_networks() -> None:
    """Lines with offsets on both sides."""
    gen = torch.Generator().manual_seed(4)
    layers = dense_layers([3, 6, 6, 2], 5)
    build, at = Builder((3,)), 0
    for i, layer in enumerate(layers):
        at = build.dense(layer, at)
        if i < 2:
            at = build.add(Sigmoid(), (at,), build.nodes[at].shape)
    graph = build.graph()
    assert is_plain(graph)
    lower = torch.randn(8, 3, generator=gen, dtype=torch.float64)
    upper = lower + torch.rand(8, 3, generator=gen, dtype=torch.float64)
    center, radius = (lower + upper) / 2, (upper - lower) / 2

    def least(coef: Tensor, bias: Tensor, domain: Tensor) -> Tensor:
        return (coef * center[domain]).sum(-1) - (coef.abs() * radius[domain]).sum(-1) + bias

    crown = RaggedCrown(graph)
    with torch.no_grad():
        lines = crown.inner(Interval(lower, upper), least, {}).lines
        rows = torch.randn(8, 4, 2, generator=gen, dtype=torch.float64)
        coef, constant = crown.backward(graph.output, rows, rows.new_zeros(8, 4), None, lines)
        x = points_in(lower, upper, 300, gen)
        y = torch.einsum("dto,ndo->ndt", rows, evaluate(graph, x.flatten(0, 1)).unflatten(0, x.shape[:2]))
    below = torch.einsum("dtm,ndm->ndt", coef, x) + constant
    assert bool((below <= y + 1e-9).all())
    assert float((y - below).amin()) < 0.05, "the lines touch nowhere: too loose to be CROWN"


def test_phases_are_true_and_children_use_them() -> None:
    gen = torch.Generator().manual_seed(5)
    known = 0
    for seed in range(4):
        case = input_case("mlp", seed)
        bounder = bounder_of(case)
        domains = root_domains(case.problem, bounder, 10, gen)
        with torch.no_grad():
            found = bounder.bound(domains)
            x = points_in(domains.lower, domains.upper, 200, gen)
            outs = {0: x.flatten(0, 1)}
            for node in case.problem.graph.nodes[1:]:
                outs[node.id] = node.op.forward(*(outs[i] for i in node.inputs))
            z = torch.cat([outs[i].flatten(1) for i in bounder._phased], 1).unflatten(0, x.shape[:2])
            again = bounder.bound(replace(domains, phase=found.phase))
        assert bool(((found.phase <= 0) | (z.amin(0) >= -1e-5)).all())
        assert bool(((found.phase >= 0) | (z.amax(0) <= 1e-5)).all())
        known += int((found.phase != 0).sum())
        rows = values(case, bounder, domains, x)
        assert bool(((again.gap <= rows.amin(0) + 1e-4) | ~bounder.groups.real[domains.group]).all())
        # a false phase would be used: the bounds move
        with torch.no_grad():
            false = bounder.bound(replace(domains, phase=torch.where(found.phase == 0, 1, found.phase).to(torch.int8)))
        if bool((found.phase == 0).any()):
            assert not torch.equal(false.gap, found.gap)
    assert known > 20


def test_intervals_first_skip_what_they_prove(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only boxes that intervals leave open get linear bounds; switched off, all do."""
    case = next(c for c in (input_case("mlp", seed) for seed in range(9)) if c.holds)
    gen = torch.Generator().manual_seed(6)
    sizes: list[int] = []
    method = Bounder._method

    def counted(self: Bounder, part: Domains, rows: Tensor) -> bounding._Lines:
        sizes.append(len(part))
        return method(self, part, rows)

    monkeypatch.setattr(Bounder, "_method", counted)
    for wanted in (True, False):
        bounder = bounder_of(case, ibp_enhancement=wanted)
        domains = root_domains(case.problem, bounder, 200, gen)
        # half of the boxes are so small that intervals prove everything there
        share = torch.where(torch.arange(200) < 100, 1e-4, 1.0)[:, None].to(domains.lower)
        tiny = replace(domains, upper=domains.lower + (domains.upper - domains.lower) * share)
        with torch.no_grad():
            bounder.bound(tiny)
    assert len(sizes) == 2 and 0 < sizes[0] <= 100 and sizes[1] == 200


@pytest.mark.parametrize("wanted", [True, False])
def test_a_parents_bound_is_kept_if_wanted(wanted: bool) -> None:
    case = input_case("mlp", 1)
    bounder = bounder_of(case, compare_with_old=wanted)
    domains = root_domains(case.problem, bounder, 5, torch.Generator().manual_seed(7))
    with torch.no_grad():
        plain = bounder.bound(domains).margin
        found = bounder.bound(replace(domains, margin=plain + 1)).margin
    expected = plain + 1 if wanted else plain
    torch.testing.assert_close(found[domains.open], expected[domains.open])


@pytest.mark.parametrize("broken", ["nan", "crossed"])
def test_broken_boxes_prove_nothing(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that look like proofs over intermediate boxes that cannot be: no gap, no linear function, no phase."""
    case = input_case("mlp", 1)
    bounder = bounder_of(case, ibp_enhancement=False)
    domains = root_domains(case.problem, bounder, 4, torch.Generator().manual_seed(8))
    method = Bounder._method

    def spoilt(self: Bounder, part: Domains, rows: Tensor) -> bounding._Lines:
        found = method(self, part, rows)
        boxes = dict(found.boxes)
        node = next(iter(boxes))
        lower = boxes[node].lower.clone()
        lower[1] = torch.nan if broken == "nan" else boxes[node].upper[1] + 1
        boxes[node] = Interval(lower, boxes[node].upper)
        return bounding._Lines(found.lower + 100, found.coef, found.bias, boxes)

    monkeypatch.setattr(Bounder, "_method", spoilt)
    with torch.no_grad():
        found = bounder.bound(domains)
    refuted = bounder.refuted(domains, found.gap, found.margin)
    assert bool(refuted[[0, 2, 3]][domains.open[[0, 2, 3]]].all()), "the plant has to look like a proof elsewhere"
    assert not bool(refuted[1].any()) and not bool(found.linear[1]) and not bool(found.phase[1].any())


def test_what_counts_as_refuted() -> None:
    """Above rhs; at rhs only where the file is strict; never by NaN or an infinity."""
    case = input_case("mlp", 1)
    bounder = bounder_of(case)
    g, r = bounder.groups.shape
    groups = replace(
        bounder.groups,
        real=torch.ones_like(bounder.groups.real),
        strict=torch.zeros_like(bounder.groups.strict),
    )
    bounder.groups = groups
    domains = root_domains(case.problem, bounder, 1, torch.Generator().manual_seed(9))
    gap = torch.full((1, g, r), -1.0)
    none = torch.full((1, g), -torch.inf)
    for value, proves in ((1e-30, True), (0.0, False), (float("nan"), False), (float("inf"), False), (-1e-30, False)):
        one = gap.clone()
        one[0, 0, 0] = value
        assert bool(bounder.refuted(domains, one, none)[0, 0]) is proves, value
        assert bool(bounder.refuted(domains, gap, none.index_fill(1, torch.tensor(0), value))[0, 0]) is proves, value
    bounder.groups = replace(groups, strict=torch.ones_like(groups.strict))
    assert bool(bounder.refuted(domains, gap.index_fill(2, torch.tensor(0), 0.0), none).all())
    assert bool(bounder.refuted(domains, gap, torch.zeros(1, g)).all())


def test_bounded_fields_are_joined_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    case = input_case("residual", 3)
    bounder = bounder_of(case)
    domains = root_domains(case.problem, bounder, 7, torch.Generator().manual_seed(10))
    with torch.no_grad():
        whole = bounder.bound(domains)
        monkeypatch.setattr(bounding, "_TILE", 3)
        parts = bounder.bound(domains)
    for name in Bounded.__slots__:
        a, b = getattr(whole, name), getattr(parts, name)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
