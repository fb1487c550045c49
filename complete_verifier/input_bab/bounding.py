"""Bounds of a batch of boxes by the chosen method: intervals first, then linear bounds where those do not suffice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import Rows, backward
from auto_LiRPA.bounds.final import interval_lower
from auto_LiRPA.bounds.forward import forward_boxes
from auto_LiRPA.bounds.forward_rows import forward_rows
from auto_LiRPA.bounds.intermediate import Boxes, Given, Intermediate, crown_boxes, interval_boxes
from auto_LiRPA.bounds.interval import IntervalWalk
from auto_LiRPA.bounds.optimize import optimize_rows
from auto_LiRPA.bounds.settings import AlphaSettings
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.parallel.sharing import check_time_together
from auto_LiRPA.values import Box, Interval, Region
from complete_verifier.incomplete.regions import relax_all, trusted
from complete_verifier.input_bab.clip import half_spaces, least_value
from complete_verifier.input_bab.conjunction import mixed_margin
from complete_verifier.input_bab.domains import Domains
from complete_verifier.input_bab.groups import Groups
from complete_verifier.input_bab.ragged import Inner, Least, RaggedCrown, is_plain
from complete_verifier.input_bab.region import CutBox
from complete_verifier.input_bab.settings import InputBabSettings
from complete_verifier.problem import Problem

# Boxes bounded together: their lines stay in a core's cache. The engine's own passes need whole rows for each.
_TILE, _ENGINE_TILE, _TILE_CUDA = 512, 256, 16384
_RAGGED = ("crown", "crown-ibp", "forward+crown", "alpha-crown")


@dataclass(frozen=True, slots=True)
class Bounded:
    """What is known of D boxes. ``gap`` ``[D, G, R]``: lower bound of each row minus its rhs. ``margin`` ``[D, G]``: of
    each clause (of its best row, or of a weighted sum of its rows). ``coef`` ``[D, G, R, m]``, ``constant``: linear
    functions below the rows (minus rhs), 0 where ``linear`` ``[D]`` is False. ``phase`` ``[D, U]``: see `Domains`.
    """

    gap: Tensor
    margin: Tensor
    coef: Tensor
    constant: Tensor
    linear: Tensor
    phase: Tensor


@dataclass(frozen=True, slots=True)
class _Lines:
    """One method's result for some boxes: row bounds ``[D, S]``, and the linear functions if the method has any."""

    lower: Tensor
    coef: Tensor | None
    bias: Tensor | None
    boxes: Boxes


class Bounder:
    """Everything that does not change during a search."""

    def __init__(self, problem: Problem, groups: Groups, settings: InputBabSettings) -> None:
        self.problem, self.groups, self.settings = problem, groups, settings
        self.graph = problem.graph
        spread = problem.context.mode == "tp" and problem.context.weights.size > 1
        ragged = is_plain(problem.graph) and settings.bound_method in _RAGGED and not spread
        self._ragged = RaggedCrown(problem.graph) if ragged else None
        nodes = problem.graph.nodes
        sources = {n.inputs[0] for n in nodes[1 : problem.graph.output + 1] if isinstance(n.op, Relu)}
        self._phased = tuple(sorted(sources)) if ragged else ()

    @property
    def tile_height(self) -> int:
        """Boxes bounded together."""
        if self.groups.rhs.is_cuda:
            return _TILE_CUDA
        return _TILE if self._ragged is not None else _ENGINE_TILE

    @property
    def phases(self) -> int:
        """U: neurons whose phase is kept."""
        return sum(self.graph.nodes[i].size for i in self._phased)

    @property
    def half_spaces(self) -> int:
        """C: half-spaces kept per domain."""
        return self.groups.shape[1] if self.settings.clip.enabled and self.settings.clip.complete else 0

    def bound(self, domains: Domains) -> Bounded:
        """Bounds of all domains, tile by tile. NaN, infinities and bounds over broken boxes prove nothing.

        Raises:
            OutOfTime: the deadline passed.
        """
        if len(domains) <= self.tile_height:
            return self._tile(domains)
        tiles = torch.arange(len(domains), device=domains.id.device).split(self.tile_height)
        parts = [self._tile(domains.pick(index)) for index in tiles]
        names = ("gap", "margin", "coef", "constant", "linear", "phase")
        return Bounded(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})

    def refuted(self, domains: Domains, gap: Tensor, margin: Tensor) -> Tensor:
        """Which clauses ``[D, G]`` the bounds refute. A NaN or an infinity refutes nothing."""
        real, strict = self.groups.real[domains.group], self.groups.strict[domains.group]
        finite = torch.isfinite(gap) & real
        by_row = (finite & ((gap > 0) | (strict & (gap >= 0)))).any(-1)
        all_strict = (strict | ~real).all(-1)
        by_sum = torch.isfinite(margin) & ((margin > 0) | (all_strict & (margin >= 0)))
        return by_row | by_sum

    def region(self, domains: Domains) -> Box:
        """The boxes in the input's own shape."""
        shape = (-1, *self.graph.input_shape)
        return Box(domains.lower.reshape(shape), domains.upper.reshape(shape))

    def next_half(self, domains: Domains, bounded: Bounded) -> Tensor:
        """Half-spaces ``[D, C, m + 1]`` for the domains' children, from the rows of their only clause."""
        if self.half_spaces == 0:
            return domains.half
        new = self.half_of_rows(domains, bounded)[:, 0]
        return torch.where(bounded.linear[:, None, None], new, domains.half)

    def half_of_rows(self, domains: Domains, bounded: Bounded) -> Tensor:
        """Half-spaces ``[D, G, R, m + 1]`` that counterexamples lie in."""
        real = self.groups.real[domains.group] & bounded.linear[:, None, None]
        return half_spaces(bounded.coef, bounded.constant, real, domains.lower, domains.upper)

    # -- time: ranks that bound the same boxes stop at the same place -------------------------------------------------
    def _check_time(self) -> None:
        check_time_together(self.problem.context)

    def _left(self) -> float:
        return self.problem.context.world.smallest(self.problem.clock.left())

    # -- one tile --------------------------------------------------------------------------------------------------
    def _tile(self, domains: Domains) -> Bounded:
        self._check_time()
        group = domains.group
        count, (g, r), m = len(domains), self.groups.shape, domains.lower.shape[1]
        rows = self.groups.c[group].flatten(1, 2)
        rhs, real = self.groups.rhs[group], self.groups.real[group]
        like = domains.lower
        gap = like.new_full((count, g, r), -torch.inf)
        coef, constant = like.new_zeros(count, g, r, m), like.new_zeros(count, g, r)
        phase, linear = domains.phase, torch.zeros(count, dtype=torch.bool, device=like.device)
        todo = torch.arange(count, device=like.device)
        if self.settings.ibp_enhancement and self.settings.bound_method != "ibp":
            found = self._intervals(domains, rows)
            gap = self._trusted(found, rhs)
            done = self.refuted(domains, gap, torch.full_like(domains.margin, -torch.inf)) | ~domains.open
            todo = (~done.all(1)).nonzero().squeeze(-1)
        if len(todo):
            part = domains if len(todo) == count else domains.pick(todo)
            found = self._method(part, rows[todo])
            new = self._trusted(found, rhs[todo])
            gap[todo] = torch.fmax(gap[todo], new)
            if found.coef is not None and found.bias is not None:
                coef[todo] = found.coef.reshape(len(todo), g, r, m)
                constant[todo] = found.bias.reshape(len(todo), g, r) - rhs[todo]
                # linear functions over boxes that mean nothing are no bounds either
                good = torch.isfinite(new) | ~real[todo]
                linear[todo] = good.flatten(1).all(1)
            if self._phased:
                # boxes that mean nothing say nothing of phases either
                new_phase = torch.where(linear[todo][:, None], self._phase(found.boxes), phase[todo])
                phase = phase.index_copy(0, todo, new_phase)
        center, radius = (domains.lower + domains.upper) / 2, (domains.upper - domains.lower) / 2
        usable = real & linear[:, None, None]
        mixed = mixed_margin(coef, torch.where(usable, gap, -torch.inf), constant, usable, center, radius)
        alone = torch.where(real, gap, -torch.inf).amax(-1)
        margin = torch.fmax(alone, torch.where(linear[:, None], mixed, -torch.inf))
        if self.settings.compare_with_old:
            margin = torch.fmax(margin, domains.margin)
        return Bounded(gap, margin, coef, constant, linear, phase)

    def _trusted(self, found: _Lines, rhs: Tensor) -> Tensor:
        """Gaps ``[D, G, R]``, -inf where they are no finite numbers or rest on broken boxes."""
        gap = found.lower.reshape(rhs.shape) - rhs
        gap = torch.where(torch.isfinite(gap), gap, -torch.inf)
        good = trusted(found.boxes)
        return gap if good is None else torch.where(good[:, None, None], gap, -torch.inf)

    def _seen(self, domains: Domains) -> dict[int, Interval]:
        """Boxes that the phases known from a larger box imply."""
        seen, first = {}, 0
        for node in self._phased:
            last = first + self.graph.nodes[node].size
            part = domains.phase[:, first:last].reshape(-1, *self.graph.nodes[node].shape)
            infinite = torch.full(part.shape, torch.inf, dtype=domains.lower.dtype, device=domains.lower.device)
            seen[node] = Interval(torch.where(part > 0, 0.0, -infinite), torch.where(part < 0, 0.0, infinite))
            first = last
        return seen

    def _phase(self, boxes: Boxes) -> Tensor:
        parts = []
        for node in self._phased:
            lower, upper = boxes[node].lower.flatten(1), boxes[node].upper.flatten(1)
            # both at once: a neuron that is 0 all over the box, or a box that rounding has crossed
            parts.append((lower >= 0).to(torch.int8) - ((upper <= 0) & ~(lower >= 0)).to(torch.int8))
        return torch.cat(parts, 1)

    def _intervals(self, domains: Domains, rows: Tensor) -> _Lines:
        region = self.region(domains)
        boxes, _ = interval_boxes(self.graph, region, self.problem.context, Given({}, self._seen(domains)))
        return _Lines(self._interval_rows(region, rows, boxes), None, None, boxes)

    def _interval_rows(self, region: Box, rows: Tensor, boxes: Boxes) -> Tensor:
        walk = IntervalWalk(self.graph, region.interval())
        for node_id, box in boxes.items():
            walk.set(node_id, box)
        return interval_lower(self.graph, rows, walk)

    def _method(self, domains: Domains, rows: Tensor) -> _Lines:
        method = self.settings.bound_method
        if method == "ibp":
            return self._intervals(domains, rows)
        region = self.region(domains)
        if method == "forward":
            middle, _ = forward_boxes(self.graph, region, self.problem.bounds, self._given(domains))
            return _Lines(forward_rows(self.graph, region, rows, middle, 1), None, None, middle.boxes)
        if self._ragged is not None and method != "alpha-crown":
            found = self._ragged_rows(self._ragged, domains, rows)
        else:
            found = self._engine_rows(domains, rows)
        if self.problem.bounds.compare_with_ibp:
            lower = torch.fmax(found.lower, self._interval_rows(region, rows, found.boxes))
            found = _Lines(lower, found.coef, found.bias, found.boxes)
        return found

    def _given(self, domains: Domains) -> Given:
        """What is known before a method starts: the boxes that intervals give, if those are wanted."""
        if not self.settings.ibp_enhancement:
            return Given({}, {})
        boxes, _ = interval_boxes(self.graph, self.region(domains), self.problem.context)
        return Given({}, boxes)

    def _ragged_rows(self, ragged: RaggedCrown, domains: Domains, rows: Tensor) -> _Lines:
        inner = self._ragged_inner(ragged, domains)
        coef = rows.reshape(*rows.shape[:2], *self.graph.output_shape)
        found, bias = ragged.backward(self.graph.output, coef, rows.new_zeros(rows.shape[:2]), None, inner.lines)
        index = torch.arange(len(domains), device=rows.device).repeat_interleave(rows.shape[1])
        lower = self._least(domains)(found.flatten(0, 1), bias.flatten(), index).reshape(rows.shape[:2])
        return _Lines(lower, found, bias, inner.boxes)

    def _ragged_inner(self, ragged: RaggedCrown, domains: Domains) -> Inner:
        region = self.region(domains)
        seen = self._seen(domains)
        if self.settings.bound_method == "forward+crown":
            middle, _ = forward_boxes(self.graph, region, self.problem.bounds, Given({}, seen))
            seen = dict(middle.boxes)
        tighten = self.settings.bound_method in ("crown", "alpha-crown")
        return ragged.inner(region.interval(), self._least(domains), seen, tighten, self._check_time)

    def _least(self, domains: Domains) -> Least:
        center, radius = (domains.lower + domains.upper) / 2, (domains.upper - domains.lower) / 2
        half = domains.half if self.half_spaces else None

        def least(coef: Tensor, bias: Tensor, domain: Tensor) -> Tensor:
            if half is not None:
                return least_value(coef, bias, center[domain], radius[domain], half[domain])
            return (coef * center[domain]).sum(-1) - (coef.abs() * radius[domain]).sum(-1) + bias

        return least

    def _engine_rows(self, domains: Domains, rows: Tensor) -> _Lines:
        """Any network: the engine's own passes, with the same rows for all boxes of a tile."""
        box = self.region(domains)
        region: Region = box
        if self.half_spaces:
            region = CutBox(box, domains.half)
        middle = self._engine_middle(domains, box, region)
        coef = rows.reshape(*rows.shape[:2], *self.graph.output_shape)
        start = Rows(self.graph.output, coef)
        slopes: Mapping[int, Tensor] | None = None
        lower: Tensor | None = None
        if self.settings.bound_method == "alpha-crown" and self.settings.alpha_iterations > 0:
            best = optimize_rows(
                self.graph, start, region, middle.relaxations, self._alpha(),
                proven=lambda found: self._all_refuted(domains, found), seconds_left=self._left,
            )  # fmt: skip
            slopes, lower = best.slopes, best.lower
        result = backward(self.graph, start, middle.relaxations, slopes)
        found = result.coef
        if found is None:
            found = rows.new_zeros(len(domains), rows.shape[1], *self.graph.input_shape)
        found = found.expand(len(domains), -1, *found.shape[2:])
        bias = result.bias.expand(len(domains), -1)
        least = region.minimum(found) + bias
        return _Lines(least if lower is None else torch.fmax(lower, least), found.flatten(2), bias, middle.boxes)

    def _engine_middle(self, domains: Domains, box: Box, region: Region) -> Intermediate:
        method, context, bounds = self.settings.bound_method, self.problem.context, self.problem.bounds
        if self._ragged is not None:
            boxes = self._ragged_inner(self._ragged, domains).boxes
            return Intermediate(boxes, relax_all(self.graph, boxes), ())
        given = self._given(domains)
        if method == "forward+crown":
            return forward_boxes(self.graph, region, bounds, given)[0]
        if method == "crown-ibp":
            boxes, _ = interval_boxes(self.graph, box, context, given)
            return Intermediate(boxes, relax_all(self.graph, boxes), ())
        return crown_boxes(self.graph, region, context, bounds, given)

    def _alpha(self) -> AlphaSettings:
        base = self.problem.bounds.alpha
        return AlphaSettings(
            mode="fixed",
            iterations=self.settings.alpha_iterations,
            lr_alpha=self.settings.alpha_lr,
            decay=base.decay,
            patience=base.patience,
            start_save_best=base.start_save_best,
            disabled=base.disabled,
        )

    def _all_refuted(self, domains: Domains, lower: Tensor) -> Tensor:
        gap = lower.reshape(len(domains), *self.groups.shape) - self.groups.rhs[domains.group]
        nothing = torch.full_like(domains.margin, -torch.inf)
        return (self.refuted(domains, gap, nothing) | ~domains.open).all(1)
