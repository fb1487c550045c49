"""Questions about an ONNX graph's wiring: who reads what, what the output needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


def names_read(node: NodeProto) -> Iterable[str]:
    """Names that a node reads, in its sub-graphs too."""
    yield from (i for i in node.input if i)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from names_read(inner)
        yield from (o.name for o in attribute.g.output)


def needed_nodes(graph: GraphProto, output: str) -> list[NodeProto]:
    """Nodes that the output depends on, in file order."""
    producer = {o: i for i, node in enumerate(graph.node) for o in node.output if o}
    needed: set[int] = set()
    stack = [output]
    while stack:
        i = producer.get(stack.pop())
        if i is not None and i not in needed:
            needed.add(i)
            stack.extend(names_read(graph.node[i]))
    return [graph.node[i] for i in sorted(needed)]


def right_factors(nodes: Iterable[NodeProto]) -> set[str]:
    """Names used as the right factor of a product, so as ``[in, out]``."""
    found = set()
    for node in nodes:
        if node.op_type == "MatMul" and len(node.input) == 2:
            found.add(node.input[1])
        elif node.op_type == "Gemm" and len(node.input) >= 2:
            if not any(a.name == "transB" and a.i for a in node.attribute):
                found.add(node.input[1])
    return found


def one_line(name: str | bytes) -> str:
    """A name as it may stand in an error: damaged files hold line breaks and bytes that are no text."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else name
    return " ".join(text.split())
