"""The bound methods by name, each made of the engine's parts: one call bounds the rows of one specification."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from auto_LiRPA.bounds.alpha import alpha_crown
from auto_LiRPA.bounds.backward import Pass, Slopes, backward
from auto_LiRPA.bounds.final import SpecTiles, final_lower, identity_spec, interval_lower, spec_tiles
from auto_LiRPA.bounds.forward import forward_boxes
from auto_LiRPA.bounds.forward_rows import forward_rows
from auto_LiRPA.bounds.intermediate import (
    NOTHING_GIVEN,
    Boxes,
    Given,
    Intermediate,
    bound_neurons,
    crown_boxes,
    interval_boxes,
)
from auto_LiRPA.bounds.interval import IntervalWalk
from auto_LiRPA.bounds.optimize import Proven, SecondsLeft
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.bounds.wide import WideLayer, wide_bounds, wide_layer
from auto_LiRPA.errors import ConfigError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import NonlinearOperator
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.sharing import each_tile
from auto_LiRPA.values import Interval, Region


class Method(Enum):
    """How bounds are made; the value is the name that messages use."""

    IBP = "IBP"
    CROWN_IBP = "CROWN-IBP"
    CROWN = "CROWN"
    FORWARD = "forward"
    FORWARD_CROWN = "forward+CROWN"
    ALPHA_CROWN = "CROWN-Optimized"

    @classmethod
    def named(cls, name: str) -> Method:
        """The method of that name in any spelling that users know.

        Raises:
            ConfigError: unknown, or known and not supported yet.
        """
        key = name.lower()
        found = _NAMES.get(key)
        if found is not None:
            return found
        if key in _LATER:
            raise ConfigError(f"method {name!r}: not supported yet; use forward, forward+CROWN or CROWN")
        near = difflib.get_close_matches(key, _NAMES, n=1) or ["crown"]
        raise ConfigError(f"method {name!r}: no such bound method; perhaps {near[0]}?")

    @property
    def gives_gradients(self) -> bool:
        """True if the bounds can be differentiated by inputs and parameters."""
        return self is not Method.ALPHA_CROWN

    @property
    def ends_backward(self) -> bool:
        """True if the last step is a backward pass, which has coefficients on the input to show."""
        return self not in (Method.IBP, Method.FORWARD)


_NAMES = {
    "ibp": Method.IBP,
    "crown-ibp": Method.CROWN_IBP,
    "ibp+backward": Method.CROWN_IBP,
    "ibp+crown": Method.CROWN_IBP,
    "crown": Method.CROWN,
    "backward": Method.CROWN,
    "forward": Method.FORWARD,
    "forward+backward": Method.FORWARD_CROWN,
    "forward+crown": Method.FORWARD_CROWN,
    "crown-optimized": Method.ALPHA_CROWN,
    "alpha-crown": Method.ALPHA_CROWN,
}
_LATER = ("forward-optimized", "dynamic-forward", "dynamic-forward+backward", "dynamic-forward+crown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is asked of one region.

    ``c``: rows ``[B or 1, S, n_out]``; None asks for every output by itself. ``lower``/``upper``: the sides wanted.
    ``coefficients``: also the linear functions of the input behind the bounds. ``proven``, ``seconds_left``: when an
    optimisation may stop early. ``boxes``: False lets a layer that is very wide go without boxes in the answer.
    """

    c: Tensor | None = None
    lower: bool = True
    upper: bool = True
    coefficients: bool = False
    given: Given = NOTHING_GIVEN
    proven: Proven | None = None
    seconds_left: SecondsLeft | None = None
    boxes: bool = True


@dataclass(frozen=True, slots=True)
class LinearFunction:
    """``coef . x + bias``: coef ``[B, S, *in]``, bias ``[B, S]``."""

    coef: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the answer: ``bound`` ``[B, S]``, and the linear function that is below (or above) the rows."""

    bound: Tensor
    linear: LinearFunction | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """The sides that were asked for, and the boxes of the nonlinear nodes' inputs that they rest on.

    ``boxes`` has none of a layer that was bounded block by block (`Query.boxes`).
    """

    lower: Side | None
    upper: Side | None
    boxes: Boxes


def compute(
    graph: Graph, region: Region, query: Query, method: Method, context: DistributedContext, settings: BoundSettings
) -> Bounds:
    """Bound the rows of ``query`` over ``region``. Records a graph of gradients where torch's grad mode is on."""
    if method is Method.IBP:
        boxes, output = interval_boxes(graph, region, context, query.given)
        return _interval_sides(graph, region, query, boxes, output)
    if method is Method.FORWARD:
        middle, output = forward_boxes(graph, region, settings, query.given)
        return _forward_sides(graph, region, query, middle, output, settings)
    if method is Method.ALPHA_CROWN:
        return _alpha_sides(graph, region, query, context, settings)
    wide = wide_of(graph, region, query, method, settings)
    if wide is not None:
        found = wide_bounds(graph, wide, region, query.c, context, _signs(query), settings.compare_with_ibp)
        return _bounds({sign: Side(bound) for sign, bound in found.items()}, {})
    middle = _intermediate(graph, region, query.given, method, context, settings)
    return _crown_sides(graph, region, query, middle, context, settings)


def wide_of(graph: Graph, region: Region, query: Query, method: Method, settings: BoundSettings) -> WideLayer | None:
    """The layer to be bounded block by block, where the query leaves that open."""
    kept = query.boxes or query.coefficients or query.given.fixed or query.given.reference
    if kept or not _signs(query) or method not in (Method.CROWN, Method.CROWN_IBP):
        return None
    return wide_layer(graph, region, settings.wide_mib)


def _intermediate(
    graph: Graph, region: Region, given: Given, method: Method, context: DistributedContext, settings: BoundSettings
) -> Intermediate:
    if method is Method.CROWN:
        return crown_boxes(graph, region, context, settings, given)
    if method is Method.FORWARD_CROWN:
        return forward_boxes(graph, region, settings, given)[0]
    boxes, _ = interval_boxes(graph, region, context, given)
    relaxations = {
        node.id: graph.relax(node, boxes)
        for node in graph.nodes[1 : graph.output + 1]
        if isinstance(node.op, NonlinearOperator)
    }
    return Intermediate(boxes, relaxations, ())


def _signs(query: Query) -> tuple[int, ...]:
    """Upper bounds are minus the lower bounds of the negated rows; they come first, as users of upstream know it."""
    return (*((-1,) if query.upper else ()), *((1,) if query.lower else ()))


def _bounds(found: Mapping[int, Side], boxes: Boxes) -> Bounds:
    return Bounds(found.get(1), found.get(-1), boxes)


def _upright(sign: int, lower: Tensor) -> Tensor:
    """A lower bound of ``sign * row`` as a bound of the row."""
    return lower if sign > 0 else -lower


def _interval_sides(graph: Graph, region: Region, query: Query, boxes: Boxes, output: Interval) -> Bounds:
    if query.c is None:
        flat = output.flat()
        sides = {1: Side(flat.lower), -1: Side(flat.upper)}
        return _bounds({sign: sides[sign] for sign in _signs(query)}, boxes)
    found = _interval_rows(graph, region, query, boxes)
    return _bounds({sign: Side(found(sign)) for sign in _signs(query)}, boxes)


def _interval_rows(graph: Graph, region: Region, query: Query, boxes: Boxes) -> Callable[[int], Tensor]:
    """Per sign, the interval bounds ``[B, S]`` of the rows over the given boxes."""
    walk = IntervalWalk(graph, region.interval())
    for node_id, box in boxes.items():
        walk.set(node_id, box)

    def rows(sign: int) -> Tensor:
        if query.c is not None:
            return _upright(sign, interval_lower(graph, query.c, walk, sign))
        flat = walk.at(graph.output).flat()
        return flat.lower if sign > 0 else flat.upper

    return rows


def _crown_sides(
    graph: Graph,
    region: Region,
    query: Query,
    middle: Intermediate,
    context: DistributedContext,
    settings: BoundSettings,
) -> Bounds:
    found: dict[int, Side] = {}
    if query.c is None and query.lower and query.upper and not query.coefficients:
        every = torch.arange(graph.nodes[graph.output].size, device=region.center().device)
        # both signs of a row in one tile, and no identity matrix of the size of the output
        box = bound_neurons(graph, graph.output, every, region, middle.relaxations, context).flat()
        found = {1: Side(box.lower), -1: Side(box.upper)}
    else:
        spec = _spec(graph, region, query, context)
        for sign in _signs(query):
            if query.coefficients:
                found[sign] = _linear_side(graph, spec, region, middle, context, sign)
            else:
                lower = final_lower(graph, spec, region, middle.relaxations, context, sign)
                found[sign] = Side(_upright(sign, lower))
    return _intersected(graph, region, query, _bounds(found, middle.boxes), settings)


def _spec(graph: Graph, region: Region, query: Query, context: DistributedContext) -> SpecTiles:
    center = region.center()
    c = identity_spec(graph, center) if query.c is None else query.c
    return spec_tiles(graph, c, context, center.shape[0])


def _linear_side(
    graph: Graph,
    spec: SpecTiles,
    region: Region,
    middle: Intermediate,
    context: DistributedContext,
    sign: int,
    slopes: Mapping[int, Slopes] | None = None,
) -> Side:
    """The linear function below ``sign * row`` and its least value, turned upright."""
    batch = region.center().shape[0]
    size = math.prod(graph.input_shape)

    def compute(position: int) -> Tensor:  # [B, T, n_in + 1]: coefficients, then the constant
        rows = spec.rows(graph, position, sign)
        mine = None if slopes is None else slopes.get(position)
        coef, bias = _on_input(graph, backward(graph, rows, middle.relaxations, mine), batch)
        return torch.cat([coef.flatten(2), bias.unsqueeze(-1)], dim=-1)

    like = spec.result_like(region).unsqueeze(-1).expand(-1, -1, size + 1)
    both = spec.join(each_tile(context, len(spec.tiles), compute, like))
    coef, bias = both[..., :-1].reshape(*both.shape[:2], *graph.input_shape), both[..., -1]
    lower = region.minimum(coef) + bias
    return Side(_upright(sign, lower), LinearFunction(_upright(sign, coef), _upright(sign, bias)))


def _on_input(graph: Graph, result: Pass, batch: int) -> tuple[Tensor, Tensor]:
    """Coefficient ``[B, T, *in]`` and bias ``[B, T]`` of a finished pass."""
    rows = result.bias.shape[1]
    coef = result.bias.new_zeros(1, rows, *graph.input_shape) if result.coef is None else result.coef
    return coef.expand(batch, *coef.shape[1:]), result.bias.expand(batch, rows)


def _intersected(graph: Graph, region: Region, query: Query, bounds: Bounds, settings: BoundSettings) -> Bounds:
    """With interval bounds of the same rows: CROWN is not monotone in its boxes, so it can lose to IBP."""
    if not settings.compare_with_ibp:
        return bounds
    rows = _interval_rows(graph, region, query, bounds.boxes)
    lower, upper = bounds.lower, bounds.upper
    if lower is not None:
        lower = replace(lower, bound=torch.fmax(lower.bound, rows(1)))
    if upper is not None:
        upper = replace(upper, bound=torch.fmin(upper.bound, rows(-1)))
    return Bounds(lower, upper, bounds.boxes)


def _alpha_sides(
    graph: Graph, region: Region, query: Query, context: DistributedContext, settings: BoundSettings
) -> Bounds:
    """One optimisation per side. The boxes of the answer are the best that either met."""
    c = identity_spec(graph, region.center()) if query.c is None else query.c
    start = None if settings.alpha.mode == "stream" else crown_boxes(graph, region, context, settings, query.given)
    found: dict[int, Side] = {}
    boxes: Boxes = {}
    for sign in _signs(query):
        result = alpha_crown(
            graph, region, c, context, settings, sign, query.given, query.proven, query.seconds_left, start
        )
        linear = None
        if query.coefficients:
            spec = spec_tiles(graph, c, context, region.center().shape[0])
            linear = _linear_side(graph, spec, region, result.intermediate, context, sign, result.slopes).linear
        found[sign] = Side(_upright(sign, result.lower), linear)
        mine = result.intermediate.boxes
        boxes = {k: box.intersect(boxes[k]) if k in boxes else box for k, box in mine.items()}
    return _intersected(graph, region, query, _bounds(found, boxes), settings)


def _forward_sides(
    graph: Graph, region: Region, query: Query, middle: Intermediate, output: Interval, settings: BoundSettings
) -> Bounds:
    if query.c is None:
        return _interval_sides(graph, region, query, middle.boxes, output)
    found = {sign: Side(_upright(sign, forward_rows(graph, region, query.c, middle, sign))) for sign in _signs(query)}
    return _intersected(graph, region, query, _bounds(found, middle.boxes), settings)
