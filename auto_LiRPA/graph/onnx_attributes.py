"""Attributes of an ONNX node, read by type with the standard's defaults; a wrong type is a one-line error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from auto_LiRPA.errors import ModelError

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

# AttributeProto.AttributeType, written out so that reading attributes needs no import of onnx
FLOAT, INT, STRING, TENSOR, GRAPH, FLOATS, INTS, STRINGS = 1, 2, 3, 4, 5, 6, 7, 8
_FIELDS = {
    FLOAT: "f",
    INT: "i",
    STRING: "s",
    TENSOR: "t",
    GRAPH: "g",
    FLOATS: "floats",
    INTS: "ints",
    STRINGS: "strings",
}
_WORDS = {
    FLOAT: "a number",
    INT: "a whole number",
    STRING: "a string",
    TENSOR: "a tensor",
    GRAPH: "a graph",
    FLOATS: "a list of numbers",
    INTS: "a list of whole numbers",
    STRINGS: "a list of strings",
}


class Attributes:
    """The attributes of one node."""

    def __init__(self, node: NodeProto, place: str) -> None:
        """``place`` names file and node in errors."""
        self._place = place
        self._items: dict[str, AttributeProto] = {item.name: item for item in node.attribute}

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def _get(self, name: str, kind: int) -> Any:
        item = self._items.get(name)
        if item is None:
            return None
        if item.type != kind:
            raise ModelError(f"{self._place}: attribute {name} is not {_WORDS[kind]}")
        return getattr(item, _FIELDS[kind])

    def integer(self, name: str, default: int) -> int:
        """A whole number."""
        value = self._get(name, INT)
        return default if value is None else int(value)

    def number(self, name: str, default: float) -> float:
        """A number."""
        value = self._get(name, FLOAT)
        return default if value is None else float(value)

    def text(self, name: str, default: str) -> str:
        """A string."""
        value = self._get(name, STRING)
        return default if value is None else bytes(value).decode("utf-8", errors="replace")

    def ints(self, name: str) -> tuple[int, ...] | None:
        """A list of whole numbers; None if it is not given."""
        value = self._get(name, INTS)
        return None if value is None else tuple(int(v) for v in value)

    def tensor(self, name: str) -> TensorProto | None:
        """A tensor; None if it is not given."""
        value: TensorProto | None = self._get(name, TENSOR)
        return value

    def graph(self, name: str) -> GraphProto | None:
        """A sub-graph; None if it is not given."""
        value: GraphProto | None = self._get(name, GRAPH)
        return value

    def values(self) -> Iterator[tuple[str, object]]:
        """Names and plain Python values of all attributes that have one (numbers, strings, lists of them)."""
        for name, item in self._items.items():
            if item.type == STRING:
                yield name, self.text(name, "")
            elif item.type == STRINGS:
                yield name, tuple(s.decode("utf-8", errors="replace") for s in item.strings)
            elif item.type in (FLOATS, INTS):
                yield name, tuple(getattr(item, _FIELDS[item.type]))
            elif item.type in (FLOAT, INT):
                yield name, getattr(item, _FIELDS[item.type])

    def plain(self) -> Mapping[str, object]:
        """`values` as a mapping, for custom operators."""
        return dict(self.values())
