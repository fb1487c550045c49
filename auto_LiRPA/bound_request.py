"""What a user hands to `compute_bounds`, checked against the network and put into the engine's terms."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.bound_options import StopRule
from auto_LiRPA.bounded_tensor import BoundedTensor
from auto_LiRPA.bounds.intermediate import Given
from auto_LiRPA.bounds.methods import Method
from auto_LiRPA.bounds.optimize import Proven, SecondsLeft
from auto_LiRPA.errors import ConfigError, SpecError, UserError
from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.perturbations import Perturbation
from auto_LiRPA.utils import OneHotC, eyeC
from auto_LiRPA.values import Box, Interval, Region

NamedBoxes = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class PerturbedInput:
    """The one input: values ``[B, *input_shape]``, and what surrounds them (None: nothing, a single point)."""

    values: Tensor
    ptb: Perturbation | None

    @classmethod
    def read(cls, x: object, graph: Graph, dtype: torch.dtype, device: torch.device) -> PerturbedInput:
        """Take a tensor or a tuple of one.

        Raises:
            SpecError: several inputs, or a shape, element type or perturbation that does not fit the network.
        """
        if isinstance(x, list | tuple):
            if len(x) != 1:
                raise SpecError(f"compute_bounds: x has {len(x)} inputs; networks with one input are supported")
            x = x[0]
        if not isinstance(x, Tensor):
            raise SpecError(f"compute_bounds: x is {type(x).__name__}: expected a BoundedTensor")
        ptb = x.ptb if isinstance(x, BoundedTensor) else None
        values = x.plain() if isinstance(x, BoundedTensor) else x
        if ptb is not None and not isinstance(ptb, Perturbation):
            raise SpecError(f"compute_bounds: perturbation {type(ptb).__name__}: expected a subclass of Perturbation")
        if values.dtype != dtype or values.device != device:
            raise SpecError(
                f"compute_bounds: x is {values.dtype} on {values.device}, the network {dtype} on {device}:"
                " make them alike"
            )
        return cls(_with_batch(values, graph), ptb)

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.values.shape[0]

    def region(self) -> Region:
        """The set of inputs to bound over."""
        if self.ptb is None:
            if not bool(torch.isfinite(self.values).all()):
                raise SpecError("compute_bounds: x holds NaN or infinite values")
            return Box(self.values, self.values)
        return self.ptb.region(self.values)

    def requires_grad(self) -> bool:
        """True if anything that the region is made of wants gradients."""
        parts = [self.values, *(vars(self.ptb).values() if self.ptb is not None else ())]
        return any(isinstance(part, Tensor) and part.requires_grad for part in parts)


def _with_batch(values: Tensor, graph: Graph) -> Tensor:
    shape = tuple(graph.input_shape)
    if tuple(values.shape[1:]) == shape and values.ndim == len(shape) + 1 and values.shape[0] > 0:
        return values
    if not graph.input_batched and tuple(values.shape) == shape:
        return values.unsqueeze(0)
    raise SpecError(f"compute_bounds: x has the shape {tuple(values.shape)}, the network takes (batch, {_list(shape)})")


def specification(c: object, graph: Graph, x: PerturbedInput) -> Tensor | None:
    """``C`` as dense rows ``[B or 1, S, n_out]``."""
    if c is None:
        return None
    if isinstance(c, eyeC | OneHotC):
        c = c.dense(x.values)
    if not isinstance(c, Tensor):
        raise SpecError(f"compute_bounds: C is {type(c).__name__}: expected a tensor [batch, rows, outputs]")
    n_out = graph.nodes[graph.output].size
    if c.ndim > 3 and math.prod(c.shape[2:]) == n_out:
        c = c.flatten(2)
    if c.ndim != 3 or c.shape[0] not in (1, x.batch) or c.shape[2] != n_out or c.shape[1] == 0:
        raise SpecError(
            f"compute_bounds: C has the shape {tuple(c.shape)}: expected ({x.batch} or 1, rows, {n_out}) for this x and"
            " network"
        )
    if c.dtype != x.values.dtype or c.device != x.values.device:
        raise SpecError(
            f"compute_bounds: C is {c.dtype} on {c.device}, x is {x.values.dtype} on {x.values.device}: make them alike"
        )
    return c


def given_boxes(
    interm_bounds: NamedBoxes | None, reference_bounds: NamedBoxes | None, graph: Graph, x: PerturbedInput
) -> Given:
    """Bounds that the caller knows, by node id. Nodes that no relaxation reads may be among them; they do no harm."""
    return Given(
        _boxes("interm_bounds", interm_bounds, graph, x), _boxes("reference_bounds", reference_bounds, graph, x)
    )


def _boxes(parameter: str, named: NamedBoxes | None, graph: Graph, x: PerturbedInput) -> dict[int, Interval]:
    boxes: dict[int, Interval] = {}
    for name, (lower, upper) in (named or {}).items():
        node = find_node(graph, name, parameter)
        shape = (x.batch, *node.shape)
        sides = []
        for side in (lower, upper):
            if side.numel() not in (node.size, node.size * x.batch):
                raise SpecError(f"compute_bounds: {parameter}[{name!r}] has the shape {tuple(side.shape)}, not {shape}")
            sides.append(side.to(x.values).reshape(-1, *node.shape).expand(shape))
        if not bool((sides[0] <= sides[1]).all()):
            raise SpecError(f"compute_bounds: {parameter}[{name!r}]: some lower bound is above the upper one, or NaN")
        boxes[node.id] = Interval(sides[0], sides[1])
    return boxes


def find_node(graph: Graph, name: str, place: str) -> Node:
    """The node of that name, or an error that tells the nearest one."""
    node = graph.by_name(name)
    if node is None:
        near = difflib.get_close_matches(name, [n.name for n in graph.nodes], n=1)
        raise ConfigError(f"{place}: no node {name!r} in the network" + (f"; perhaps {near[0]!r}?" if near else ""))
    return node


def ending_at(graph: Graph, name: str | None) -> Graph:
    """The same graph with another node as its result."""
    if name is None or name == graph.nodes[graph.output].name:
        return graph
    node = find_node(graph, name, "final_node_name")
    return replace(graph, nodes=graph.nodes[: node.id + 1], output=node.id, output_batched=True, scalar_output=False)


def refuse(**given: object) -> None:
    """Parameters that do not act: anything but None or False is an error that names the first one."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise UserError(f"compute_bounds: {name}: not supported yet; leave it out")


def method_named(name: str | None, ibp: bool, forward: bool) -> Method:
    """The method that the name and upstream's two flags mean together."""
    if name is None:
        return Method.IBP if ibp else Method.FORWARD if forward else Method.CROWN
    method = Method.named(name)
    if method is Method.CROWN and (ibp or forward):
        return Method.CROWN_IBP if ibp else Method.FORWARD_CROWN
    return method


def wants_coefficients(
    graph: Graph, return_a: bool, needed: Mapping[str, Collection[str]] | None, method: Method
) -> bool:
    """Whether coefficients are asked for; more than output -> input, or of a method without any, is an error."""
    if not return_a:
        return False
    if not method.ends_backward:
        raise UserError(f"compute_bounds: return_A: method {method.value} has no coefficients; use a CROWN method")
    start, end = graph.nodes[graph.output].name, graph.nodes[0].name
    for name, ends in (needed or {}).items():
        if name != start or not set(ends) <= {end}:
            raise UserError(
                f"compute_bounds: needed_A_dict[{name!r}] = {sorted(ends)}: only {start!r} -> {end!r} is supported"
            )
    return True


def proven_by(rule: StopRule | None) -> Proven | None:
    """A stop criterion of upstream's kind as one answer per batch element."""
    if rule is None:
        return None

    def proven(lower: Tensor) -> Tensor:
        said = torch.as_tensor(rule(lower), dtype=torch.bool, device=lower.device)
        return said.expand(lower.shape[0]) if said.ndim == 0 else said.reshape(lower.shape[0], -1).all(1)

    return proven


def clock(max_time: float) -> SecondsLeft | None:
    """Seconds until ``max_time`` from now has passed; None for no limit."""
    if not math.isfinite(max_time):
        return None
    end = time.monotonic() + max_time
    return lambda: end - time.monotonic()


def _list(shape: tuple[int, ...]) -> str:
    return ", ".join(str(n) for n in shape)
