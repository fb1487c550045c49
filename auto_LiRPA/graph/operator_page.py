"""docs/operators.md, generated from the table of builders: what is read from ONNX, and how each operator is bounded.

`python -m auto_LiRPA.graph.operator_page` in a checkout writes the page; a test compares it with what is committed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType

from auto_LiRPA.graph import assembler, node_view
from auto_LiRPA.graph.builders import BUILDERS
from auto_LiRPA.operators.base import NonlinearOperator, Operator, Relaxation
from auto_LiRPA.operators.elementwise import ElementwiseOperator

PAGE = "docs/operators.md"

_INTRODUCTION = """\
# Operators

This page is generated from the table of builders (`python -m auto_LiRPA.graph.operator_page`).

A network is read from ONNX, node by node; a `torch.nn.Module` is exported to ONNX in memory and takes the same road. A
node whose inputs are all constants is computed when the network is read, whatever its operator, so shape arithmetic
needs no rules. Any other node becomes operators of the bound graph. One that has no rules here ends the load with one
line: the node, its operator and shapes, the nearest operator that is supported, and how to register one
(`docs/custom_operator.md` is a worked example).

- **exact**: a linear map. The backward rule loses nothing.
- **relaxed**: bounded by linear pieces that hold on the box of its inputs. Slopes say whether alpha-CROWN optimises
  these pieces.
- **interval only**: no linear pieces; bounds pass through it as a box.

What only passes entries on, or arranges them anew, becomes `Reshape`, `Transpose` and `Expand` nodes or none at all (a
dash below); other operators may need such nodes too, to broadcast or to move the batch axis. "Becomes" names what the
builder can make; one node becomes one of these, or two or three in a row.
"""


def operators_of(op_type: str) -> tuple[type[Operator], ...]:
    """Operator classes that the builder of ``op_type`` itself makes, by name.

    Found in the code (the names that the builder and the functions it calls look up), so the page cannot fall behind.
    """
    builder = BUILDERS[op_type]
    found = _classes_made([builder])
    if sum(other is builder for other in BUILDERS.values()) > 1:  # one builder for several: each makes its namesake
        found = {kind for kind in found if kind.__name__ == op_type} or found
    return _by_name(found)


def all_operators() -> tuple[type[Operator], ...]:
    """Every operator class that reading a network can make, by name."""
    helpers = _operator_classes([*vars(node_view).values(), *vars(assembler).values()])
    return _by_name(_classes_made(BUILDERS.values()) | helpers)


def has_slopes(kind: type[Operator]) -> bool:
    """Whether alpha-CROWN has something to optimise in this operator's relaxation."""
    if not issubclass(kind, NonlinearOperator):
        return False
    if issubclass(kind, ElementwiseOperator):
        return kind.alpha_count > 0
    made = (kind.relax.__globals__.get(name) for name in _names(kind.relax.__code__))
    return any(isinstance(r, type) and issubclass(r, Relaxation) and r.alpha is not None for r in made)


def operators_page() -> str:
    """The text of the page."""
    return "\n".join([_INTRODUCTION, *_onnx_table(), "", *_class_table()]) + "\n"


def write_page(root: Path) -> None:
    """Write the page below the root of a checkout."""
    path = root / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(operators_page(), encoding="utf-8")


def _onnx_table() -> Iterator[str]:
    yield f"## Read from ONNX: {len(BUILDERS)} operators of the standard domain\n"
    yield "| ONNX | Support | Becomes | What is read |"
    yield "| --- | --- | --- | --- |"
    for op_type, builder in sorted(BUILDERS.items()):
        kinds = operators_of(op_type)
        support = " or ".join(sorted({kind.support for kind in kinds})) or "exact"
        yield _row(f"`{op_type}`", support, ", ".join(f"`{k.__name__}`" for k in kinds) or "-", _meaning(builder))


def _class_table() -> Iterator[str]:
    yield "## Operators of the bound graph\n"
    yield "| Operator | Support | Slopes | Meaning |"
    yield "| --- | --- | --- | --- |"
    for kind in all_operators():
        slopes = "-" if kind.support == "exact" else "optimised" if has_slopes(kind) else "fixed"
        yield _row(f"`{kind.__name__}`", kind.support, slopes, _meaning(kind))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _meaning(documented: object) -> str:
    """A docstring on one line, without what it says of errors."""
    text = (documented.__doc__ or "").partition("Raises:")[0]
    return " ".join(text.split()).replace("``", "`")


def _by_name(kinds: Iterable[type[Operator]]) -> tuple[type[Operator], ...]:
    return tuple(sorted(kinds, key=lambda kind: kind.__name__))


def _classes_made(builders: Iterable[object]) -> set[type[Operator]]:
    """Operator classes that these functions, or functions of this room that they call, look up."""
    found: set[type[Operator]] = set()
    waiting, seen = list(builders), set[FunctionType]()
    while waiting:
        function = waiting.pop()
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        if function.__module__.startswith("auto_LiRPA.graph."):
            used = [function.__globals__.get(name) for name in _names(function.__code__)]
            found |= _operator_classes(used)
            waiting += used
    return found


def _operator_classes(values: Iterable[object]) -> set[type[Operator]]:
    """The operator classes among them (not the bases, nor the input, which stand beside them)."""
    classes = (v for v in values if isinstance(v, type) and issubclass(v, Operator))
    return {kind for kind in classes if kind.__module__ != Operator.__module__}


def _names(code: CodeType) -> set[str]:
    """Names that a function looks up, those within it (lambdas, comprehensions) included."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*(_names(part) for part in inner))


if __name__ == "__main__":
    write_page(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2])
