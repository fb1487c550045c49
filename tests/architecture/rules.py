"""The rules of the source tree. Each takes the files and returns its faults, one line each."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.architecture.source import SourceFile

# Rooms from the lowest layer to the highest. A file may import its own room and rooms of lower layers; rooms of one
# layer don't know each other. A room is a folder or a single file; `api` and `entry` are the files at the top.
LAYERS: dict[str, tuple[frozenset[str], ...]] = {
    "auto_LiRPA": (
        frozenset({"errors", "tolerances"}),
        frozenset({"values"}),
        frozenset({"relaxation", "parallel"}),
        frozenset({"operators"}),
        frozenset({"graph"}),
        frozenset({"bounds"}),
        frozenset({"api"}),
    ),
    "complete_verifier": (
        frozenset({"outcome", "problem", "shortage", "together"}),
        frozenset({"events"}),
        frozenset({"spec", "config"}),
        frozenset({"attack", "incomplete", "branching", "datasets", "models"}),
        frozenset({"bab", "bab_parallel", "mip", "compat"}),
        frozenset({"input_bab"}),  # shares boxes over ranks as `bab` does domains
        frozenset({"reporting"}),
        frozenset({"sweep", "report"}),
        frozenset({"driver", "vnncomp"}),
        frozenset({"entry"}),
    ),
    "abcrown": (frozenset({"language"}), frozenset({"entry"})),
}
# Which package may import which other one.
BELOW = {"auto_LiRPA": (), "complete_verifier": ("auto_LiRPA",), "abcrown": ("auto_LiRPA", "complete_verifier")}
ENTRY_FILES = frozenset({"__init__", "__main__", "abcrown"})

# An operator sees a store of weights and a tile of rows, never the ranks behind them.
PARALLEL_FOR_OPERATORS = ("auto_LiRPA.parallel.store", "auto_LiRPA.parallel.tiles")
TORCH_DISTRIBUTED_IN = ("auto_LiRPA/parallel/", "complete_verifier/driver/")
ENVIRONMENT_IN = ("auto_LiRPA/parallel/context.py",)
PRINT_IN = ("complete_verifier/__main__.py", "complete_verifier/driver/cli.py")

# google: protobuf, the format of ONNX files.
LIBRARY_MAY_IMPORT = {"torch", "numpy", "onnx", "onnx_ir", "onnxscript", "google", "safetensors", "auto_LiRPA"}
# Kernels for CUDA devices; these files are imported where there is one.
TRITON_IN = ("auto_LiRPA/bounds/domains/triton_kernels.py", "auto_LiRPA/bounds/domains/fused.py")
# Each costs a good part of the start-up second: imported inside the function that needs it.
LATE = {"matplotlib", "onnx_ir", "onnxruntime", "onnxscript", "pandas", "rich", "scipy", "sklearn"}

# Folders of one machine. In text, a folder inside a relative path or an address is none; in a binary file (where an
# exporter may have written its stack trace) the byte before is a length and tells nothing.
MACHINE_PATH = rb"/(?:work|root|home|Users)/\w"
MACHINE_PATH_IN_TEXT = re.compile(rb"(?<![\w$}.-])" + MACHINE_PATH)
MACHINE_PATH_IN_BINARY = re.compile(MACHINE_PATH)


def layer_faults(files: Iterable[SourceFile]) -> Iterator[str]:
    """Imports reach only lower layers, never sideways, never up, never into a package that stands above."""
    for file in files:
        home_package, home = _room(file.module, file.root)
        if _level(home_package, home) is None:
            yield f"{file.path}: the room '{home}' has no layer: give it one in tests/architecture/rules.py"
            continue
        for imported in file.imports():
            place = f"{file.path}:{imported.line}"
            package = imported.target.split(".")[0]
            if package == home_package:
                yield from _inside_fault(place, package, home, imported.target, file.root)
            elif package in LAYERS and package not in BELOW[home_package]:
                yield f"{place}: {home_package} must not import {package}"


def _inside_fault(place: str, package: str, home: str, target: str, root: Path) -> Iterator[str]:
    _, room = _room(target, root)
    level, own = _level(package, room), _level(package, home)
    if room == home:
        return
    if level is None or own is None or level >= own:
        yield f"{place}: {home} must not import {room} ({target})"
    elif home == "operators" and room == "parallel" and not _within(target, PARALLEL_FOR_OPERATORS):
        yield f"{place}: operators may import of parallel only {' and '.join(PARALLEL_FOR_OPERATORS)}, not {target}"


def _room(module: str, root: Path) -> tuple[str, str]:
    """`auto_LiRPA.values.interval` is in `values`; a file beside the folders is in `api` or `entry`, unless a room."""
    package, *rest = module.split(".")
    rooms = frozenset[str]().union(*LAYERS[package])
    if rest and (rest[0] in rooms or (root / package / rest[0]).is_dir()):
        return package, rest[0]
    if package == "complete_verifier" and rest and rest[0] not in ENTRY_FILES:
        return package, rest[0]
    return package, "api" if package == "auto_LiRPA" else "entry"


def _level(package: str, room: str) -> int | None:
    return next((level for level, rooms in enumerate(LAYERS[package]) if room in rooms), None)


def _within(target: str, modules: Iterable[str]) -> bool:
    return any(target == module or target.startswith(f"{module}.") for module in modules)


def foreign_faults(files: Iterable[SourceFile]) -> Iterator[str]:
    """auto_LiRPA needs torch, numpy and the ONNX family only; heavy libraries are imported late everywhere."""
    for file in files:
        for imported in file.imports():
            place, name = f"{file.path}:{imported.line}", imported.target.split(".")[0]
            own = LIBRARY_MAY_IMPORT | {"complete_verifier", "abcrown"}  # those two: layer_faults
            own |= {"triton"} if file.path in TRITON_IN else set()
            if file.path.startswith("auto_LiRPA/") and name not in own and name not in sys.stdlib_module_names:
                yield f"{place}: auto_LiRPA must not import {name}"
            if name in LATE and imported.at_start:
                yield f"{place}: {name} is slow to import: do it inside the function that needs it"


def distributed_faults(files: Iterable[SourceFile]) -> Iterator[str]:
    """Ranks are known in the parallel room and to the driver that starts them, nowhere else."""
    for file in files:
        if file.path.startswith(TORCH_DISTRIBUTED_IN):
            continue
        mentioned = {(imported.target, imported.line) for imported in file.imports()} | set(file.dotted_names())
        for line in sorted({line for name, line in mentioned if _within(name, ["torch.distributed"])}):
            yield f"{file.path}:{line}: torch.distributed is for {' and '.join(TORCH_DISTRIBUTED_IN)} only"


def environment_faults(files: Iterable[SourceFile]) -> Iterator[str]:
    """The library's behaviour never hangs on the environment, except where the ranks are found out."""
    names = ("os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv")
    for file in files:
        if not file.path.startswith("auto_LiRPA/") or file.path in ENVIRONMENT_IN:
            continue
        mentioned = {(imported.target, imported.line) for imported in file.imports()} | set(file.dotted_names())
        for line in sorted({line for name, line in mentioned if _within(name, names)}):
            yield f"{file.path}:{line}: environment variables are read in {ENVIRONMENT_IN[0]} only"


def print_faults(files: Iterable[SourceFile]) -> Iterator[str]:
    """Only the command line speaks on standard output (ruff's T20 can be silenced in place, this cannot)."""
    for file in files:
        for node in ast.walk(file.tree):
            if (
                file.path not in PRINT_IN
                and isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in {"print", "pprint"}
            ):
                yield f"{file.path}:{node.lineno}: print belongs to {' and '.join(PRINT_IN)}; use logging"


def package_faults(files: Iterable[SourceFile]) -> Iterator[str]:
    """A folder without __init__.py works in a checkout and is missing from an installation."""
    folders = {(file.root / file.path).parent: file.root for file in files}
    for folder, root in sorted(folders.items()):
        if not (folder / "__init__.py").is_file():
            yield f"{folder.relative_to(root).as_posix()}: has Python files and no __init__.py"


def machine_path_faults(root: Path, paths: Iterable[Path]) -> Iterator[str]:
    """No file tells on which machine it was made."""
    for path in paths:
        content = (root / path).read_bytes()
        pattern = MACHINE_PATH_IN_BINARY if b"\0" in content else MACHINE_PATH_IN_TEXT
        for number, line in enumerate(content.split(b"\n"), start=1):
            if found := pattern.search(line):
                yield f"{path.as_posix()}:{number}: mentions a folder of one machine: {found.group().decode()}..."
