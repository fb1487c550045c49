"""`BoundedModule`: a torch module (or a network read by `load_onnx`) whose outputs can be bounded."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from auto_LiRPA.bound_options import BoundOptions
from auto_LiRPA.bound_request import (
    NamedBoxes,
    PerturbedInput,
    clock,
    ending_at,
    find_node,
    given_boxes,
    method_named,
    proven_by,
    refuse,
    specification,
    wants_coefficients,
)
from auto_LiRPA.bounds.intermediate import Boxes
from auto_LiRPA.bounds.interval import nonlinear_inputs
from auto_LiRPA.bounds.methods import Bounds, Method, Query, Side, compute
from auto_LiRPA.errors import ConfigError, UserError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.registry import CustomOperator, register_custom_op
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.graph.tensor_parallel import tensor_parallel
from auto_LiRPA.node_views import BoundNode
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.numerics import full_precision
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.shared_graph import SharedGraph, element_type, shared_graph
from auto_LiRPA.values import Interval

_LOG = logging.getLogger(__name__)

Side2 = tuple[Tensor | None, Tensor | None]
Coefficients = dict[str, dict[str, dict[str, Tensor | None]]]


@dataclass(frozen=True, slots=True)
class _Last:
    """The last call, for what refers back to it: its input, its boxes by node, its interval bounds.

    ``dropped``: names of nodes whose boxes were too large to be kept.
    """

    x: PerturbedInput | None = None
    boxes: Boxes = field(default_factory=dict)
    ibp: Side2 = (None, None)
    dropped: tuple[str, ...] = ()


class BoundedModule(nn.Module):
    """Bounds of a network's outputs over a region of inputs.

    The model's parameters are shared, not copied: after an optimiser step the next call sees the new weights, and
    `state_dict`, `load_state_dict`, `parameters`, `train`, `eval` and `to` are the model's own, with its own names.

    Gradients: a bound is a plain number unless it is asked to be differentiable. It is if grad mode is on and either
    something that the region or `C` is made of requires grad, or this module was put into training mode by `train()`
    (it starts in evaluation mode, whatever the model's mode) and has parameters that require grad.

    Args:
        model: a module with one tensor in and one out, or what `load_onnx` returned; a BoundedModule is copied.
        global_input: an example input (or a tuple of one); only its shape behind the batch, and its type, count.
        bound_opts: options by name, see `bound_options`.
        device: where the model is moved; "auto" (or None) leaves it where it is.
        verbose: accepted for compatibility; use the logger `auto_LiRPA`.
        custom_ops: operator classes by ``"ns::Name"``, registered as by `register_custom_op`.
        parallel: a `DistributedContext`, or the settings of one.
    """

    _source: nn.Module

    def __init__(
        self,
        model: nn.Module,
        global_input: Tensor | tuple[Tensor, ...],
        bound_opts: Mapping[str, object] | None = None,
        device: torch.device | str | None = "auto",
        verbose: bool = False,
        custom_ops: Mapping[str, type[CustomOperator]] | None = None,
        parallel: DistributedContext | ParallelSettings | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(parallel, DistributedContext | ParallelSettings | None):
            given = type(parallel).__name__
            raise ConfigError(f"BoundedModule: parallel is a {given}: give a DistributedContext or ParallelSettings")
        source: nn.Module = model._source if isinstance(model, BoundedModule) else model
        if device not in (None, "auto"):
            source.to(device)
        _adopt(self, source)
        for name, operator in (custom_ops or {}).items():
            register_custom_op(name, operator)
        self._options = BoundOptions().updated(bound_opts)
        self._example = _example(global_input)
        self._parallel = parallel
        self._own_context: DistributedContext | None = None
        make_store = self._context(self._example.device).make_store
        self._shared: SharedGraph = (
            model._shared if isinstance(model, BoundedModule) else shared_graph(source, self._example, make_store)
        )
        self._ready: tuple[Graph, str, Graph] | None = None
        self._last = _Last()
        self.training = False
        self._graph()

    # -- bounds -----------------------------------------------------------------------------------------------------

    def compute_bounds(
        self,
        x: Tensor | tuple[Tensor, ...] | None = None,
        aux: object = None,
        C: Any = None,
        method: str | None = "backward",
        IBP: bool = False,
        forward: bool = False,
        bound_lower: bool = True,
        bound_upper: bool = True,
        reuse_ibp: bool = False,
        reuse_alpha: bool = False,
        return_A: bool = False,
        needed_A_dict: Mapping[str, Collection[str]] | None = None,
        final_node_name: str | None = None,
        average_A: bool = False,
        interm_bounds: NamedBoxes | None = None,
        reference_bounds: NamedBoxes | None = None,
        intermediate_constr: object = None,
        alpha_idx: object = None,
        aux_reference_bounds: object = None,
        need_A_only: bool = False,
        cutter: object = None,
        decision_thresh: object = None,
        update_mask: object = None,
        ibp_nodes: object = None,
        cache_bounds: bool = False,
    ) -> Any:
        """Lower and upper bounds of the outputs, or of the rows ``C y``, for every input of the region.

        Args:
            x: a `BoundedTensor` (or a tuple of one) ``[B, *input_shape]``; None takes the last one again.
            C: rows ``[B or 1, S, n_out]``; None bounds every output.
            method: IBP, CROWN-IBP, CROWN (= backward), forward, forward+CROWN, CROWN-Optimized (= alpha-CROWN), in
                any spelling of upstream. None with ``IBP=True`` is IBP.
            bound_lower, bound_upper: a side not asked for comes back as None.
            reuse_ibp: with ``method=None`` the last IBP result again.
            return_A: also a dictionary ``A[output][input]`` of `lA`, `uA` ``[B, S, *input_shape]`` and `lbias`,
                `ubias` ``[B, S]``: ``lA x + lbias`` is below the rows, ``uA x + ubias`` above. (The bounds may be
                tighter than these functions, where an interval bound won.)
            needed_A_dict: accepted if it asks for no more than output -> input.
            final_node_name: bound this node instead of the output.
            interm_bounds: node name -> (lower, upper), taken as they are. They must be true.
            reference_bounds: the same, intersected with our own.
            cache_bounds: keep the bounds of every layer for `save_intermediate` and the views of nodes. By default a
                layer whose bounds take more than 256 MiB is bounded block by block and they are dropped, where that
                is possible: plain CROWN of a network with one layer of activations.
            reuse_alpha and the others: not supported; anything but the default is an error that names it.

        Returns:
            ``(lb, ub)``, or ``(lb, ub, A)`` with `return_A`: ``[B, S]`` with C, else ``[B, *output_shape]``.

        Raises:
            UserError: something does not fit the network, or is not supported. One line says what and how to mend it.
        """
        refuse(
            aux=aux,
            reuse_alpha=reuse_alpha,
            average_A=average_A,
            intermediate_constr=intermediate_constr,
            alpha_idx=alpha_idx,
            aux_reference_bounds=aux_reference_bounds,
            need_A_only=need_A_only,
            cutter=cutter,
            decision_thresh=decision_thresh,
            update_mask=update_mask,
            ibp_nodes=ibp_nodes,
        )
        if method is None and reuse_ibp:
            return self._last_ibp()
        chosen = method_named(method, IBP, forward)
        graph = ending_at(self._graph(), final_node_name)
        coefficients = wants_coefficients(graph, return_A, needed_A_dict, chosen)
        given_x = self._input(x, graph)
        record = self._records_gradients(given_x, C, chosen)
        with full_precision(), torch.set_grad_enabled(record):
            rows = specification(C, graph, given_x)
            query = Query(
                c=rows,
                lower=bound_lower,
                upper=bound_upper,
                coefficients=coefficients,
                given=given_boxes(interm_bounds, reference_bounds, graph, given_x),
                proven=proven_by(self._options.stop_rule),
                seconds_left=clock(self._options.max_time),
                boxes=cache_bounds,
            )
            context = self._context(given_x.values.device)
            bounds = compute(graph, given_x.region(), query, chosen, context, self._options.bounds)
            per_sample = () if graph.scalar_output else graph.output_shape
            shape = (given_x.batch, *per_sample) if rows is None else None
            lower, upper = _shaped(bounds.lower, shape), _shaped(bounds.upper, shape)
        self._remember(given_x, graph, bounds, chosen, (lower, upper), whole=rows is None)
        return (lower, upper, _coefficients(graph, bounds)) if return_A else (lower, upper)

    def _input(self, x: Tensor | tuple[Tensor, ...] | None, graph: Graph) -> PerturbedInput:
        if x is not None:
            return PerturbedInput.read(x, graph, *element_type(graph, self._example))
        if self._last.x is None:
            raise UserError("compute_bounds: x is missing, and there was no earlier call to take it from")
        return self._last.x

    def _records_gradients(self, x: PerturbedInput, c: object, method: Method) -> bool:
        """Whether this call is asked for differentiable bounds; refused where they would be wrong or missing."""
        if not torch.is_grad_enabled():
            return False
        trains = self.training and any(p.requires_grad for p in self.parameters())
        record = trains or x.requires_grad() or (isinstance(c, Tensor) and c.requires_grad)
        if record and self._graph().spread is not None:
            raise UserError(
                "compute_bounds: parallel.mode tp gives no gradients: call it under torch.no_grad(), or use mode single"
            )
        if record and not method.gives_gradients:
            raise UserError(
                f"compute_bounds: method {method.value} gives no gradients: call it under torch.no_grad(), or use CROWN"
            )
        if trains:
            wanting = {name for name, p in self.named_parameters() if p.requires_grad}
            for name, node in self._shared.derived.items():
                if name in wanting:
                    raise UserError(
                        f"compute_bounds: no gradient reaches the parameter {name}: node {node} computes a constant"
                        " from it when the network is read; freeze it (requires_grad_(False)) or call eval()"
                    )
            if held := sorted(wanting & self._shared.copied):
                raise UserError(
                    f"compute_bounds: no gradient reaches the parameter {held[0]}: parallel.mode fsdp and offload keep"
                    " copies of weights; train with mode single, or call eval()"
                )
        return record

    def _remember(
        self, x: PerturbedInput, graph: Graph, bounds: Bounds, method: Method, result: Side2, whole: bool
    ) -> None:
        """Keep what later calls may ask for, cut off from the graph that made it."""
        boxes = {node_id: box.detach() for node_id, box in bounds.boxes.items()}
        plain = tuple(None if side is None else side.detach() for side in result)
        lower, upper = plain
        if whole and lower is not None and upper is not None:
            boxes[graph.output] = Interval(lower, upper)
        ibp = (lower, upper) if method is Method.IBP else self._last.ibp
        wanting = sorted((set(nonlinear_inputs(graph)) & graph.ancestors[graph.output]) - set(boxes))
        self._last = _Last(x, boxes, ibp, tuple(graph.nodes[i].name for i in wanting))

    def _last_ibp(self) -> Side2:
        if self._last.ibp == (None, None):
            raise UserError("compute_bounds: reuse_ibp: there is no earlier IBP result")
        return self._last.ibp

    # -- the network ------------------------------------------------------------------------------------------------

    def _graph(self) -> Graph:
        """The graph as the model is now, with the chosen lower lines of its ReLUs."""
        graph, rule = self._shared.graph, self._options.slope_rule
        if self._ready is None or self._ready[0] is not graph or self._ready[1] != rule:
            nodes = (
                replace(n, op=replace(n.op, slope_rule=rule)) if isinstance(n.op, Relu) else n for n in graph.nodes
            )
            chosen = replace(graph, nodes=tuple(nodes))
            context = self._context(self._example.device)
            if context.mode == "tp":
                chosen = tensor_parallel(chosen, context)
            self._ready = (graph, rule, chosen)
        return self._ready[2]

    def distribute(self, parallel: DistributedContext | ParallelSettings) -> None:
        """Place the weights anew, as the argument ``parallel`` would have. All ranks have to call it."""
        self._parallel, self._own_context = parallel, None
        self._shared = shared_graph(self._source, self._example, self._context(self._example.device).make_store)
        self._ready, self._last = None, _Last()
        self._graph()

    def _context(self, device: torch.device) -> DistributedContext:
        """Where to compute; `crown_batch_size` caps the rows of a tile."""
        given = self._parallel
        if isinstance(given, DistributedContext):
            context = given
        elif self._own_context is not None and self._own_context.device == device:
            context = self._own_context  # one for all calls: it keeps what was recorded
        else:
            context = self._own_context = DistributedContext.single(device, given)
        cap, rows = self._options.tile_rows, context.settings.tile_rows
        if math.isfinite(cap):
            rows = int(cap) if rows == "auto" else min(rows, int(cap))
            context = replace(context, settings=replace(context.settings, tile_rows=rows))
        return context

    def forward(self, *x: Any, final_node_name: str | None = None, method_opt: str = "forward", **kwargs: Any) -> Any:
        """The model's own output (gradients and training-mode layers as the model has them), or one node's value.

        ``method_opt="compute_bounds"`` hands everything else to `compute_bounds`.
        """
        if method_opt == "compute_bounds":
            return self.compute_bounds(*x, **kwargs)
        if method_opt != "forward":
            raise ConfigError(f"BoundedModule: method_opt = {method_opt!r}: expected forward or compute_bounds")
        values = tuple(v.as_subclass(Tensor) if isinstance(v, Tensor) else v for v in x)
        if final_node_name is None:
            return self._source(*values)
        graph = ending_at(self._graph(), final_node_name)
        return evaluate(graph, PerturbedInput.read(values, graph, *element_type(graph, self._example)).values)

    def set_bound_opts(self, new_opts: Mapping[str, object]) -> None:
        """Change some options; those not named stay."""
        self._options = self._options.updated(new_opts)

    # -- nodes ------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the network's numbers are."""
        return element_type(self._graph(), self._example)[1]

    @property
    def final_name(self) -> str:
        graph = self._graph()
        return graph.nodes[graph.output].name

    @property
    def output_name(self) -> list[str]:
        return [self.final_name]

    @property
    def input_name(self) -> list[str]:
        return [self._graph().nodes[0].name]

    @property
    def root_names(self) -> list[str]:
        return self.input_name

    @property
    def relus(self) -> list[str]:
        """Names of the ReLU nodes, in order."""
        return [node.name for node in self._graph().nodes if isinstance(node.op, Relu)]

    def nodes(self) -> list[BoundNode]:
        """Views of all nodes, inputs first."""
        return [self._view(i) for i in range(len(self._graph().nodes))]

    def roots(self) -> list[BoundNode]:
        """Views of the inputs."""
        return [self._view(0)]

    def final_node(self) -> BoundNode:
        """View of the output."""
        return self._view(self._graph().output)

    def __getitem__(self, name: str) -> BoundNode:
        return self._view(find_node(self._graph(), name, "BoundedModule").id)

    def _view(self, node_id: int) -> BoundNode:
        graph = self._graph()
        batch = self._example.shape[0] if self._last.x is None else self._last.x.batch
        return BoundNode(graph, graph.nodes[node_id], self._last.boxes, batch)

    def get_split_nodes(self) -> tuple[list[BoundNode], dict[str, list[tuple[BoundNode, int]]]]:
        """Nodes that branch and bound may split (what ReLUs read), and per such node the activations that read it."""
        graph = self._graph()
        users: dict[int, list[tuple[BoundNode, int]]] = {}
        for node in graph.nodes:
            if isinstance(node.op, Relu):
                users.setdefault(node.inputs[0], []).append((self._view(node.id), 0))
        return [self._view(i) for i in users], {graph.nodes[i].name: found for i, found in users.items()}

    def save_intermediate(self, save_path: str | Path | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Bounds of the last call by node name, as `interm_bounds` takes them; also written to a file (torch.save).

        Layers whose bounds were dropped for their size (see `cache_bounds`) are left out, and a warning says so.
        """
        graph = self._graph()
        if self._last.dropped:
            names = ", ".join(self._last.dropped)
            _LOG.warning("save_intermediate: no bounds of %s: call compute_bounds with cache_bounds=True", names)
        named = {graph.nodes[i].name: (box.lower, box.upper) for i, box in sorted(self._last.boxes.items())}
        if save_path is not None:
            torch.save(named, save_path)
        return named

    # -- the model's own ----------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self._source.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self._source.load_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        self._source.train(mode)
        self.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._source._apply(fn, recurse)
        self._example = fn(self._example)
        self._last = _Last()
        return self


def _adopt(bounded: nn.Module, source: nn.Module) -> None:
    """Let ``bounded`` have the parameters, buffers and children of ``source``: the same dictionaries, the same names.

    The source itself is no child of it, or every name would get a prefix.
    """
    shared = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
    vars(bounded).update({name: vars(source)[name] for name in shared}, _source=source)


def _example(global_input: Tensor | tuple[Tensor, ...]) -> Tensor:
    inputs = global_input if isinstance(global_input, tuple | list) else (global_input,)
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        raise UserError(f"BoundedModule: global_input has {len(inputs)} parts: one tensor is expected")
    return inputs[0].detach().as_subclass(Tensor)


def _shaped(side: Side | None, shape: tuple[int, ...] | None) -> Tensor | None:
    if side is None:
        return None
    return side.bound if shape is None else side.bound.reshape(shape)


def _coefficients(graph: Graph, bounds: Bounds) -> Coefficients:
    found: dict[str, Tensor | None] = {"lA": None, "lbias": None, "uA": None, "ubias": None, "unstable_idx": None}
    for letter, side in (("l", bounds.lower), ("u", bounds.upper)):
        if side is not None and side.linear is not None:
            found[f"{letter}A"], found[f"{letter}bias"] = side.linear.coef, side.linear.bias
    return {graph.nodes[graph.output].name: {graph.nodes[0].name: found}}
