"""Clip-and-verify: boxes of a domain's neurons tightened by what its splits say about the input (interface 7.9)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.columns import Layout
from auto_LiRPA.errors import OutOfTime
from complete_verifier.bab.clip_dual import HalfSpaces, Objectives, bound_below, shrink_box
from complete_verifier.bab.domains import Domains, own_columns
from complete_verifier.bab.input_lines import InputLines, make_input_lines
from complete_verifier.branching.layout import root_columns
from complete_verifier.branching.picking import open_keys
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

# Numbers of all objectives of the domains that are clipped together.
TILE_ELEMENTS = 2**22
# Share of all magnitudes added up that a bound gives away for rounding: of the rows, and of the root's own boxes.
ROUNDING_ULPS = 8
LEAST_ROUNDING = 1e-12
# A domain is empty if bounds cross by more than this many times the share above.
EMPTY_FACTOR = 16
# How often the half-spaces cut the input box, each time from what the others left.
INPUT_ROUNDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSettings:
    """``top``: neurons per layer that are tightened (0: none). ``with_input``: cut the input box first.

    ``by_distance``: half-spaces in the order of their distance from the box's centre, the farthest first; else in the
    order of the share of their range over the box that they cut off. ``most``: half-spaces of a domain that are used.
    """

    top: int = 20
    with_input: bool = False
    by_distance: bool = False
    most: int = 32


@dataclass(frozen=True, slots=True)
class Clipped:
    """``lower``, ``upper`` ``[D, U]``: bounds of the neurons before their own splits, no looser than before.

    ``empty`` ``[D]``: no input satisfies all splits of such a domain, which is closed.
    """

    lower: Tensor
    upper: Tensor
    empty: Tensor


def make_clipper(problem: Problem, root: IncompleteResult, layout: Layout, settings: ClipSettings) -> Clipper | None:
    """The clipper of a search; None where there is nothing to clip, or its rows take too much memory or time."""
    if settings.top == 0 or layout.width == 0:
        return None
    try:
        lines = make_input_lines(problem, root, layout)
    except OutOfTime:  # the search will find that out by itself
        return None
    return None if lines is None else Clipper(problem, root, layout, settings, lines)


class Clipper:
    """Everything that does not change during a search."""

    def __init__(
        self, problem: Problem, root: IncompleteResult, layout: Layout, settings: ClipSettings, lines: InputLines
    ) -> None:
        self._settings, self._lines = settings, lines
        self._spans = tuple((layer.start, layer.stop) for layer in layout.layers)
        self._region = problem.clauses.region
        columns = root_columns(layout, root.intermediate)
        self._lower, self._upper = columns.lower, columns.upper
        self._share = max(ROUNDING_ULPS * torch.finfo(lines.coef.dtype).eps, LEAST_ROUNDING)
        every = HalfSpaces(lines.coef, lines.bias, lines.scale)
        middle, reach = every.levels(lines.center, lines.radius)
        if settings.by_distance:
            length = torch.linalg.vector_norm(lines.coef, dim=2)
            rank = middle / length.clamp_min(torch.finfo(length.dtype).tiny)
        else:
            rank = (middle + reach) / reach.clamp_min(torch.finfo(reach.dtype).tiny)
        # a half-space that holds the whole box says nothing
        self._rank = open_keys(rank, (middle + reach > 0) & (reach > 0))
        self._impossible = middle - reach > self._share * EMPTY_FACTOR * lines.scale

    def opened(self, domains: Domains) -> Domains:
        """The same domains with boxes of their own, the root's, so that all domains of a search are alike."""
        region = self._region[domains.clause]
        return replace(domains, box_lower=self._lower[region], box_upper=self._upper[region])

    def clip(self, domains: Domains, coef: Tensor | None = None, most: int | None = None) -> tuple[Domains, Tensor]:
        """The same domains with the tighter boxes of `tighten`, and which of them are empty ``[D]``."""
        found = self.tighten(domains, coef, most)
        return replace(domains, box_lower=found.lower, box_upper=found.upper), found.empty

    def tighten(self, domains: Domains, coef: Tensor | None = None, most: int | None = None) -> Clipped:
        """Better bounds for the neurons of each layer that matter most.

        Args:
            coef: coefficient on each ReLU's output ``[D, U]`` where known (a parent's will do): neurons are ranked by
                the height of their relaxation's triangle times its negative part; without it by the height alone.
            most: splits of the deepest domain, if the caller knows (asking the device waits for it).
        """
        box = own_columns(domains)
        region = self._region[domains.clause]
        lower = self._lower[region] if box is None else box.lower
        upper = self._upper[region] if box is None else box.upper
        if most is None:
            most = int((domains.sign != 0).sum(1).amax()) if len(domains) else 0
        most = min(most, self._settings.most, self._lines.width)
        if most == 0:
            return Clipped(lower, upper, torch.zeros_like(domains.sign[:, 0], dtype=torch.bool))
        parts = []
        for index in self._tiles(domains):
            limits = self._half_spaces(domains.sign[index], region[index], most)
            weight = None if coef is None else coef[index]
            picked = self._objectives(lower[index], upper[index], domains.sign[index], weight)
            parts.append(self._tile(lower[index], upper[index], region[index], picked, limits))
        empty = torch.cat([part.empty for part in parts]) | self._alone_impossible(domains.sign, region)
        return Clipped(torch.cat([p.lower for p in parts]), torch.cat([p.upper for p in parts]), empty)

    def input_box(self, domains: Domains, most: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What the splits leave of the input box: lower and upper ``[D, n]``, and which domains are empty ``[D]``.

        The n inputs are those that move in some region (`moving`).
        """
        region = self._region[domains.clause]
        if most is None:
            most = int((domains.sign != 0).sum(1).amax()) if len(domains) else 0
        most = max(1, min(most, self._settings.most, self._lines.width))
        parts = []
        for index in self._tiles(domains):
            limits = self._half_spaces(domains.sign[index], region[index], most)
            parts.append(self._cut(limits, self._lines.center[region[index]], self._lines.radius[region[index]]))
        center, radius, empty = (torch.cat(part) for part in zip(*parts, strict=True))
        return center - radius, center + radius, empty | self._alone_impossible(domains.sign, region)

    @property
    def moving(self) -> Tensor:
        """The flat inputs that `input_box` speaks of."""
        return self._lines.moving

    def _tiles(self, domains: Domains) -> Iterator[slice]:
        """Domains that are clipped together: as many as the model and the settings alone say."""
        objectives = 2 * sum(min(self._settings.top, stop - start) for start, stop in self._spans)
        height = max(1, TILE_ELEMENTS // (objectives * len(self._lines.moving)))
        return (slice(start, start + height) for start in range(0, len(domains), height))

    def _half_spaces(self, sign: Tensor, region: Tensor, most: int) -> HalfSpaces:
        """The splits' half-spaces that cut most, best first, ``most`` of each domain; padded by the zero row."""
        width = self._lines.width
        rank = self._rank[region]
        # z <= 0 contradicts the lower bound of z where that is positive, z >= 0 the lower bound of -z
        mine = torch.where(sign < 0, rank[:, :width], torch.where(sign > 0, rank[:, width : 2 * width], -torch.inf))
        best, column = mine.sort(dim=1, descending=True, stable=True)
        column, best = column[:, :most], best[:, :most]
        row = torch.where(sign.gather(1, column) > 0, column + width, column)
        row = torch.where(best > -torch.inf, row, 2 * width)
        return HalfSpaces(*self._rows(region, row))

    def _objectives(self, lower: Tensor, upper: Tensor, sign: Tensor, coef: Tensor | None) -> Tensor:
        """Columns ``[D, J]`` to tighten: of each layer the ``top`` best ones that are undecided."""
        undecided = (lower < 0) & (upper > 0) & (sign == 0)
        height = torch.where(undecided, -lower * upper / (upper - lower), 0.0)
        key = open_keys(height if coef is None else height * (-coef).clamp_min(0), undecided)
        parts = []
        for start, stop in self._spans:
            order = key[:, start:stop].argsort(dim=1, descending=True, stable=True)
            parts.append(order[:, : self._settings.top] + start)
        return torch.cat(parts, 1)

    def _tile(self, lower: Tensor, upper: Tensor, region: Tensor, picked: Tensor, limits: HalfSpaces) -> Clipped:
        """Bounds of the picked columns of some domains, put back into all of their columns."""
        center, radius = self._lines.center[region], self._lines.radius[region]
        empty = torch.zeros_like(region, dtype=torch.bool)
        if self._settings.with_input:
            center, radius, empty = self._cut(limits, center, radius)
        rows = torch.cat([picked, picked + self._lines.width], 1)
        goals = Objectives(*self._rows(region, rows))
        found = bound_below(goals, limits, center, radius, self._share)
        count = picked.shape[1]
        before = lower.gather(1, picked), upper.gather(1, picked)
        low, high = torch.fmax(before[0], found[:, :count]), torch.fmin(before[1], -found[:, count:])
        scale = goals.scale[:, :count] + goals.scale[:, count:]
        empty = empty | (low - high > self._share * EMPTY_FACTOR * scale).any(1)
        # bounds that cross without being proof stay as they were: a crossed box has no relaxation
        crossed = low > high
        low, high = torch.where(crossed, before[0], low), torch.where(crossed, before[1], high)
        return Clipped(lower.scatter(1, picked, low), upper.scatter(1, picked, high), empty)

    def _rows(self, region: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients, biases and scales of rows ``[D, J]`` of each domain's region."""
        where = region.unsqueeze(1)
        return self._lines.coef[where, row], self._lines.bias[where, row], self._lines.scale[where, row]

    def _cut(self, limits: HalfSpaces, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centre and radius ``[D, n]`` of what the half-spaces leave of the boxes, and which are empty ``[D]``."""
        empty = torch.zeros_like(center[:, 0], dtype=torch.bool)
        for _ in range(INPUT_ROUNDS):
            low, high = shrink_box(limits, center, radius, self._share)
            empty = empty | (low > high).any(1)
            middle = (low + high) / 2
            # no larger than it was, and as large as the rounded centre needs
            reach = torch.maximum(high - middle, middle - low) * (1 + self._share)
            better = (reach < radius) & (low <= high)
            center, radius = torch.where(better, middle, center), torch.where(better, reach, radius)
        return center, radius, empty

    def _alone_impossible(self, sign: Tensor, region: Tensor) -> Tensor:
        """Domains ``[D]`` with a split that no point of the input box allows."""
        width, never = self._lines.width, self._impossible[region]
        return (((sign < 0) & never[:, :width]) | ((sign > 0) & never[:, width : 2 * width])).any(1)
