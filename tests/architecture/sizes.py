"""The largest files and functions, for the eye: `python -m tests.architecture.sizes`. It fails nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from tests.architecture.source import SourceFile, sources
from tests.support import ROOT


@dataclass(frozen=True, slots=True, order=True)
class Size:
    lines: int
    place: str


def file_sizes(files: Iterable[SourceFile]) -> list[Size]:
    """Largest first."""
    sizes = [Size(len((file.root / file.path).read_text(encoding="utf-8").splitlines()), file.path) for file in files]
    return sorted(sizes, reverse=True)


def function_sizes(files: Iterable[SourceFile]) -> list[Size]:
    """From the line of `def` to the last one, largest first; nested functions count in both."""
    return sorted(
        (
            Size((node.end_lineno or node.lineno) - node.lineno + 1, f"{file.path}:{node.lineno} {node.name}")
            for file in files
            for node in ast.walk(file.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ),
        reverse=True,
    )


def report(files: list[SourceFile], top: int = 8) -> str:
    sizes, functions = file_sizes(files), function_sizes(files)
    lines = [f"{len(sizes)} files, {sum(size.lines for size in sizes)} lines, {len(functions)} functions"]
    for title, aim, found in (("files", 300, sizes), ("functions", 40, functions)):
        over = sum(size.lines > aim for size in found)
        lines.append(f"largest {title} (aim: {aim} lines; {over} above it)")
        lines += [f"  {size.lines:5d}  {size.place}" for size in found[:top]]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(sources(ROOT)))
