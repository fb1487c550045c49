"""A network over one input box as a mixed-integer program with big-M rows from the intermediate boxes.

Columns are the inputs and, for each unstable neuron ``z`` in ``[l, u]``, its positive part ``p``, its negative part
``q`` and a binary ``d`` (Tjeng et al., 2019, written with both parts):

    z = p - q,    0 <= p <= u d,    0 <= q <= -l (1 - d)

so ReLU is ``p``, LeakyReLU ``p - leak q``, Abs ``p + q``. Whatever is stable is folded into affine expressions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.operators.piecewise import Abs, Clip
from auto_LiRPA.operators.pooling import MaxPool
from auto_LiRPA.values import Interval, Region
from complete_verifier.mip.linear_maps import LinearMaps
from complete_verifier.mip.program import Affine, Floats, Program, ProgramBuilder
from complete_verifier.mip.settings import Formulation

# Programs beyond this have never been solved in minutes; building one would only take memory from the search.
MOST_NONZEROS = 30_000_000


class Unsuitable(Exception):
    """There is no program for this problem, or none of use; the text says why."""


@dataclass(frozen=True, slots=True)
class Sides:
    """Bounds of a node's neurons over the region, flattened."""

    lower: Floats
    upper: Floats


@dataclass(frozen=True, slots=True)
class Encoding:
    """A program, the node that it was built for as a function of its columns, and its binaries.

    ``binaries``: columns; ``gaps``: how far each one's neuron is from linear, ``-l u / (u - l)``.
    """

    program: Program
    target: Affine
    n_inputs: int
    binaries: NDArray[np.int64]
    gaps: Floats


def check_encodable(graph: Graph, region: Region) -> None:
    """Raises Unsuitable for an operator, or a region, that has no exact program here."""
    if not region.is_box:
        raise Unsuitable("the input region is no box")
    for node in graph.nodes[1 : graph.output + 1]:
        if not isinstance(node.op, LinearOperator | Relu | Abs | Clip | MaxPool):
            raise Unsuitable(f"{type(node.op).__name__} (node {node.name}) is not piecewise linear")


def encode(
    maps: LinearMaps,
    inputs: Sides,
    boxes: Mapping[int, Sides],
    target: int,
    formulation: Formulation = "mip",
    cut: frozenset[int] = frozenset(),
) -> Encoding:
    """The program of everything that node ``target`` depends on.

    Args:
        inputs: the region.
        boxes: bounds of every nonlinear node's inputs, finite.
        cut: nonlinear nodes whose output is a free variable within its interval: what lies before is left out.

    Raises:
        Unsuitable, OutOfTime.
    """
    return _Encoder(maps, boxes, formulation).run(inputs, target, cut)


@dataclass(slots=True)
class _Encoder:
    maps: LinearMaps
    boxes: Mapping[int, Sides]
    formulation: Formulation
    build: ProgramBuilder = field(default_factory=ProgramBuilder)
    values: dict[int, Affine] = field(default_factory=dict)
    binaries: list[NDArray[np.int64]] = field(default_factory=list)
    gaps: list[Floats] = field(default_factory=list)
    nonzeros: int = 0

    def run(self, inputs: Sides, target: int, cut: frozenset[int]) -> Encoding:
        graph = self.maps.graph
        columns = self.build.columns(inputs.lower, inputs.upper)
        self.values[0] = self.build.unit(len(columns), columns, columns, 1.0)
        for node_id in sorted(_needed(graph, target, cut)):
            node = graph.nodes[node_id]
            if node_id in cut:
                self.values[node_id] = self._free(node)
            elif isinstance(node.op, LinearOperator):
                self.values[node_id] = self._linear(node)
            else:
                self.values[node_id] = self._nonlinear(node)
            self.nonzeros += self.values[node_id].matrix.nnz
            if self.nonzeros > MOST_NONZEROS:
                raise Unsuitable(f"the program is too large (more than {MOST_NONZEROS:,} nonzeros)")
        return Encoding(
            program=self.build.finish(),
            target=self.values[target],
            n_inputs=len(columns),
            binaries=np.concatenate([np.zeros(0, dtype=np.int64), *self.binaries]),
            gaps=np.concatenate([np.zeros(0), *self.gaps]),
        )

    # -- nodes ----------------------------------------------------------------------------------------------------
    def _linear(self, node: Node) -> Affine:
        linear = self.maps.of(node)
        total: Affine | None = None
        for matrix, source in zip(linear.matrices, node.inputs, strict=True):
            value = self.values[source]
            part = Affine((matrix @ value.matrix).tocsr(), matrix @ value.offset)
            total = part if total is None else total.plus(part)
        assert total is not None
        return Affine(total.matrix, total.offset + linear.bias)

    def _free(self, node: Node) -> Affine:
        (source,) = node.inputs
        box, shape = self.boxes[source], (1, *self.maps.graph.nodes[source].shape)
        lower, upper = torch.from_numpy(box.lower).reshape(shape), torch.from_numpy(box.upper).reshape(shape)
        image = node.op.interval(Interval(lower, upper))
        columns = self.build.columns(image.lower.flatten().numpy(), image.upper.flatten().numpy())
        return self.build.unit(node.size, np.arange(node.size), columns, 1.0)

    def _nonlinear(self, node: Node) -> Affine:
        (source,) = node.inputs
        z, box = self.values[source], self.boxes[source]
        match node.op:
            case Relu(leak=leak):
                positive, negative = self._parts(z, box)
                return positive.plus(negative, -leak) if leak else positive
            case Abs():
                positive, negative = self._parts(z, box)
                return positive.plus(negative)
            case Clip(low=low, high=high):
                return self._clip(z, box, low, high)
            case MaxPool():
                return self._max(node.op, z, box)
            case op:
                raise TypeError(type(op).__name__)

    def _parts(self, z: Affine, box: Sides) -> tuple[Affine, Affine]:
        """Positive and negative part of every neuron: ``z = positive - negative``."""
        active, dead = box.lower >= 0, box.upper <= 0
        index = np.flatnonzero(~(active | dead))
        low, high = box.lower[index], box.upper[index]
        p = self.build.columns(np.zeros(len(index)), high)
        q = self.build.columns(np.zeros(len(index)), -low)
        each = np.arange(len(index))
        if self.formulation == "lp":
            # the triangle: p / u + q / -l <= 1, scaled so that no coefficient is above 1
            scale = np.maximum(high, -low)
            both = self._row(each, p, -low / scale).plus(self._row(each, q, high / scale))
            self.build.at_most(both, -low * high / scale)
        else:
            d = self.build.columns(np.zeros(len(index)), np.ones(len(index)), self.formulation == "mip")
            self.build.at_most(self._row(each, p, 1.0).plus(self._row(each, d, high), -1.0), np.zeros(len(index)))
            self.build.at_most(self._row(each, q, 1.0).plus(self._row(each, d, -low)), -low)
            self.binaries.append(d)
            self.gaps.append(-low * high / (high - low))
        difference = z.pick(index).plus(self._row(each, p, 1.0), -1.0).plus(self._row(each, q, 1.0))
        self.build.at_most(difference, np.zeros(len(index)), equality=True)
        size = len(z.offset)
        positive = z.masked(active).plus(self.build.unit(size, index, p, 1.0))
        negative = self.build.unit(size, index, q, 1.0).plus(z.masked(dead & ~active), -1.0)
        return positive, negative

    def _clip(self, z: Affine, box: Sides, low: float | None, high: float | None) -> Affine:
        """``low + (z - low)+ - (z - high)+``; an open side has no such term."""
        value = z
        if low is not None and np.isfinite(low):
            above, _ = self._parts(Affine(z.matrix, z.offset - low), Sides(box.lower - low, box.upper - low))
            value = Affine(above.matrix, above.offset + low)
        if high is not None and np.isfinite(high):
            over, _ = self._parts(Affine(z.matrix, z.offset - high), Sides(box.lower - high, box.upper - high))
            value = value.plus(over, -1.0)
        return value

    def _max(self, op: MaxPool, z: Affine, box: Sides) -> Affine:
        """Each window's maximum ``m``: at least every entry, at most the one that a binary picks."""
        entry = _window_entries(op)
        lower = np.where(entry >= 0, box.lower[entry], -np.inf)
        upper = np.where(entry >= 0, box.upper[entry], -np.inf)
        floor, ceiling = lower.max(1), upper.max(1)
        # an entry that another one is always above never has to be picked
        able = upper >= floor[:, None]
        first = np.argmax(lower, axis=1)
        single = able.sum(1) == 1
        size = len(entry)
        out = z.pick(entry[np.arange(size), first]).masked(single)
        windows = np.flatnonzero(~single)
        m = self.build.columns(floor[windows], ceiling[windows])
        place, slot = np.nonzero(able[windows])
        picked = entry[windows][place, slot]
        d = self.build.columns(np.zeros(len(place)), np.ones(len(place)), self.formulation == "mip")
        each = np.arange(len(place))
        x, top = z.pick(picked), self._row(each, m[place], 1.0)
        self.build.at_most(x.plus(top, -1.0), np.zeros(len(place)))
        slack = ceiling[windows][place] - box.lower[picked]
        self.build.at_most(top.plus(x, -1.0).plus(self._row(each, d, slack)), slack)
        one = self.build.unit(len(windows), place, d, 1.0)
        self.build.at_most(one, np.ones(len(windows)), equality=True)
        return out.plus(self.build.unit(size, windows, m, 1.0))

    def _row(self, each: NDArray[np.int64], column: NDArray[np.int64], value: Floats | float) -> Affine:
        return self.build.unit(len(each), each, column, value)


def _needed(graph: Graph, target: int, cut: frozenset[int]) -> set[int]:
    """Nodes to encode besides the input: the target and all below it, but not what only ``cut`` nodes need."""
    needed: set[int] = set()
    stack = [target]
    while stack:
        node_id = stack.pop()
        if node_id == 0 or node_id in needed:
            continue
        needed.add(node_id)
        if node_id not in cut:
            stack.extend(graph.nodes[node_id].inputs)
    return needed


def _window_entries(op: MaxPool) -> NDArray[np.int64]:
    """Flat input neuron of every window entry ``[windows, count]``; -1 for padding."""
    number = torch.arange(int(torch.Size(op.in_shape).numel()), dtype=torch.float64).reshape(1, *op.in_shape)
    gathered: NDArray[np.int64] = op.windows.gather(number, -1.0)[0].flatten(0, -2).long().numpy()
    return gathered
