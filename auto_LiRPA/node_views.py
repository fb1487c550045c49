"""Read-only views of a network's nodes, with the bounds of the last call: what `net['name']` and `net.nodes()` give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.intermediate import Boxes
from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.operators.base import NonlinearOperator, Operator


@dataclass(frozen=True, slots=True)
class BoundNode:
    """One node. ``lower``/``upper`` are None where the last call had no use for this node's bounds."""

    _graph: Graph
    _node: Node
    _boxes: Boxes
    batch: int

    @property
    def name(self) -> str:
        return self._node.name

    @property
    def op(self) -> Operator:
        """The operator, to ask its type."""
        return self._node.op

    @property
    def lower(self) -> Tensor | None:
        box = self._boxes.get(self._node.id)
        return None if box is None else box.lower

    @property
    def upper(self) -> Tensor | None:
        box = self._boxes.get(self._node.id)
        return None if box is None else box.upper

    @property
    def interval(self) -> tuple[Tensor | None, Tensor | None]:
        return self.lower, self.upper

    @property
    def output_shape(self) -> torch.Size:
        """With the batch of the last call in front."""
        return torch.Size((self.batch, *self._node.shape))

    @property
    def inputs(self) -> tuple[BoundNode, ...]:
        """The nodes that this one reads."""
        return tuple(BoundNode(self._graph, self._graph.nodes[i], self._boxes, self.batch) for i in self._node.inputs)

    @property
    def output_name(self) -> list[str]:
        """Names of the nodes that read this one."""
        return [self._graph.nodes[i].name for i in self._graph.users[self._node.id]]

    @property
    def perturbed(self) -> bool:
        """Always True: what does not depend on the input is folded into the operators."""
        return True

    @property
    def requires_input_bounds(self) -> list[int]:
        """Positions of the inputs whose bounds this node's relaxation needs."""
        return list(range(len(self._node.inputs))) if isinstance(self._node.op, NonlinearOperator) else []

    def __repr__(self) -> str:
        return f"<{type(self.op).__name__} {self.name!r} {tuple(self.output_shape)}>"
