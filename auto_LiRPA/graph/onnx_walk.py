"""Questions about an ONNX graph's wiring: who reads what, what the output needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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


# Operators whose result is their first input in another shape.
_RESHAPING = frozenset({"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_FACTORS = {"MatMul": (0, 1), "Gemm": (0, 1), "Conv": (1,)}


def only_weights(nodes: Sequence[NodeProto], output: str) -> Mapping[str, int]:
    """Names that are read as factors of products and kernels of convolutions alone -> how often they are read.

    Those that become one through changes of shape count too, and so do the results of these.
    """
    reads: Counter[str] = Counter(name for node in nodes for name in names_read(node))
    reads[output] += 1
    fitting: Counter[str] = Counter()
    for node in reversed(nodes):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in _FACTORS:
            fitting.update(node.input[i] for i in _FACTORS[node.op_type] if i < len(node.input))
        elif node.op_type in _RESHAPING and len(node.output) == 1 and node.input:
            result = node.output[0]
            fitting[node.input[0]] += fitting[result] == reads[result]
    return {name: count for name, count in reads.items() if count == fitting[name]}


def one_line(name: str | bytes) -> str:
    """A name as it may stand in an error: damaged files hold line breaks and bytes that are no text."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else name
    return " ".join(text.split())
