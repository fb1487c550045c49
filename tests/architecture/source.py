"""What the source files import and mention, read with `ast`: nothing is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("auto_LiRPA", "complete_verifier", "abcrown")
IMPORT_CALLS = {"importlib.import_module", "import_module", "__import__"}


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name. Names of other projects keep their last part: `from torch import Tensor` is `torch.Tensor`."""

    target: str
    line: int
    at_start: bool  # executed when the module is imported: not in a function, not for type checkers only


@dataclass(frozen=True, slots=True)
class SourceFile:
    path: str  # relative to the root, with forward slashes
    module: str
    tree: ast.Module
    root: Path

    @property
    def is_package(self) -> bool:
        return self.path.endswith("__init__.py")

    def imports(self) -> list[Import]:
        return [
            Import(target, node.lineno, at_start)
            for node, at_start in _walk(self.tree, at_start=True)
            if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)
            for target in self._targets(node)
        ]

    def dotted_names(self) -> Iterator[tuple[str, int]]:
        """Every `a.b.c` in the file, as written, and its line."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute | ast.Name) and (name := _dotted(node)):
                yield name, node.lineno

    def _targets(self, node: ast.Import | ast.ImportFrom | ast.Call) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = self._absolute(node)
            return [self._submodule_or_name(base, alias.name) for alias in node.names]
        if _dotted(node.func) in IMPORT_CALLS:
            return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        return []

    def _absolute(self, node: ast.ImportFrom) -> str:
        """`from ..values import x` with its leading dots resolved."""
        if not node.level:
            return node.module or ""
        up = node.level - 1 if self.is_package else node.level
        parts = self.module.split(".")
        return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])

    def _submodule_or_name(self, base: str, name: str) -> str:
        """For our own packages a module that exists, so that a class name is not taken for a file."""
        if base.split(".")[0] not in PACKAGES:
            return f"{base}.{name}"
        place = self.root.joinpath(*base.split("."), name)
        return f"{base}.{name}" if place.is_dir() or place.with_suffix(".py").is_file() else base


def sources(root: Path) -> list[SourceFile]:
    """Every Python file of the packages below `root`."""
    files = sorted(file for package in PACKAGES for file in (root / package).rglob("*.py"))
    return [_read(root, file) for file in files]


def _read(root: Path, file: Path) -> SourceFile:
    relative = file.relative_to(root)
    parts = relative.with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return SourceFile(relative.as_posix(), module, ast.parse(file.read_text(encoding="utf-8"), str(relative)), root)


def _walk(node: ast.AST, *, at_start: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes below `node`, each with whether importing the module executes it."""
    yield node, at_start
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        at_start = False
    if isinstance(node, ast.If) and (_dotted(node.test) or "").endswith("TYPE_CHECKING"):
        for statement in node.body:
            yield from _walk(statement, at_start=False)
        for statement in node.orelse:
            yield from _walk(statement, at_start=at_start)
        return
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, at_start=at_start)


def _dotted(node: ast.AST) -> str | None:
    """`a.b.c` as text; None where the expression is anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value)
        return f"{base}.{node.attr}" if base else None
    return None
