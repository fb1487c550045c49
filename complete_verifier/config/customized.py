"""User code named in a configuration: read as data with `ast`, imported only when asked for, never evaluated.

`Customized("file_or_module", "callable", *args, **kwargs)` names a callable and literal arguments to bind to it; a
plain name or a call of a name (`mnist_cnn_4layer`, `mnist_fc(width=256)`) names something built in.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from auto_LiRPA.errors import ConfigError

logger = logging.getLogger(__name__)

LONGEST_TEXT = 4000
_MODULE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_CUSTOM_PACKAGES = ("complete_verifier.custom", "custom")
# What a module of user code may raise while it is imported because of a mistake in it or in its installation.
_IMPORT_FAULTS = (
    ImportError, SyntaxError, OSError, NameError, AttributeError, TypeError, ValueError, LookupError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NamedCall:
    """A built-in name with literal arguments: `resnet2b`, `mnist_fc(width=256)`."""

    name: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class CustomizedRef:
    """User code: a callable of a .py file or module, with literal arguments to bind to it."""

    file_or_module: str
    name: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]


def parse_reference(text: str) -> CustomizedRef | NamedCall:
    """Read a reference to a callable; ConfigError for anything but a name or a call with literal arguments."""
    body = _expression(text)
    if isinstance(body, ast.Name):
        return NamedCall(body.id, (), {})
    if not isinstance(body, ast.Call) or not isinstance(body.func, ast.Name):
        raise ConfigError(f'{_short(text)}: expected a name or Customized("file.py", "callable", ...)')
    args = tuple(_literal(arg, text) for arg in body.args)
    kwargs = _keywords(body, text)
    if body.func.id != "Customized":
        return NamedCall(body.func.id, args, kwargs)
    return _customized(args, kwargs, text)


def parse_customized(text: str) -> CustomizedRef:
    """Read `Customized("file_or_module", "callable", ...)`; ConfigError for anything else."""
    reference = parse_reference(text)
    if isinstance(reference, NamedCall):
        raise ConfigError(f'{_short(text)}: expected Customized("file.py", "callable", ...)')
    return reference


def resolve(ref: CustomizedRef, root_path: str, config_dir: Path | None) -> Callable[..., Any]:
    """Import the callable that `ref` names and bind its arguments. This runs the user's own file or module.

    A `.py` file is looked up below `root_path` if that is set, else beside the configuration file; any other name is a
    module of the `custom` package or, with a warning, a top-level module.
    """
    if ref.file_or_module.endswith(".py"):
        base = Path(root_path) if root_path else (config_dir or Path())
        module = _import_file(base / ref.file_or_module)
    else:
        module = _import_module(ref.file_or_module)
    target = getattr(module, ref.name, None)
    if not callable(target):
        defined = ", ".join(name for name in vars(module) if not name.startswith("_"))[:200]
        raise ConfigError(f'{ref.file_or_module}: no callable "{ref.name}"; the module defines: {defined}')
    return partial(target, *ref.args, **ref.kwargs)


# -- reading ----------------------------------------------------------------------------------------------------------
def _short(text: str) -> str:
    line = " ".join(text.split()) or "(empty)"
    return line if len(line) <= 100 else line[:97] + "..."


def _expression(text: str) -> ast.expr:
    if len(text) > LONGEST_TEXT:
        raise ConfigError(f"{_short(text)}: longer than {LONGEST_TEXT} characters")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ConfigError(f'{_short(text)}: expected a name or Customized("file.py", "callable", ...)') from None


def _keywords(call: ast.Call, text: str) -> dict[str, object]:
    kwargs: dict[str, object] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ConfigError(f"{_short(text)}: write the arguments out; ** is not read")
        if keyword.arg in kwargs:
            raise ConfigError(f"{_short(text)}: argument {keyword.arg} is given twice")
        kwargs[keyword.arg] = _literal(keyword.value, text)
    return kwargs


def _customized(args: tuple[object, ...], kwargs: Mapping[str, object], text: str) -> CustomizedRef:
    if len(args) < 2 or not isinstance(args[0], str) or not isinstance(args[1], str):
        raise ConfigError(f"{_short(text)}: the first two arguments of Customized are a file or module and a callable")
    place, name = args[0], args[1]
    if not place.endswith(".py") and not _MODULE_NAME.fullmatch(place):
        raise ConfigError(f'{_short(text)}: "{_short(place)}" is neither a .py file nor a module name')
    if not name.isidentifier():
        raise ConfigError(f'{_short(text)}: "{_short(name)}" is not the name of a callable')
    return CustomizedRef(place, name, args[2:], kwargs)


def _literal(node: ast.expr, text: str) -> object:
    """The value of a literal; also sums, products and quotients of numbers, since radii are written as 2/255."""
    try:
        return _value(node)
    except (ValueError, ArithmeticError, TypeError, RecursionError):
        part = ast.get_source_segment(text.strip(), node) or ""
        raise ConfigError(
            f"{_short(text)}: {_short(part)} is not a literal; write numbers, text, lists, True, False or None"
        ) from None


def _value(node: ast.expr) -> object:
    match node:
        case ast.Constant(value=value) if value is not ...:
            return value
        case ast.List(elts=parts):
            return [_value(part) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(_value(part) for part in parts)
        case ast.Dict(keys=keys, values=values):
            return {_value(_present(key)): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return _arithmetic(_number(left), op, _number(right))
    raise ValueError


def _present(key: ast.expr | None) -> ast.expr:
    if key is None:  # {**other}
        raise ValueError
    return key


def _number(node: ast.expr) -> int | float:
    value = _value(node)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return value


def _arithmetic(left: int | float, op: ast.operator, right: int | float) -> int | float:
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
    raise ValueError


# -- importing --------------------------------------------------------------------------------------------------------
def _import_file(path: Path) -> ModuleType:
    """Import a .py file once per process: two hooks of one file share its state, as they would in a package."""
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a Customized file is looked up below root_path or beside the YAML")
    name = "customized_" + re.sub(r"\W", "_", str(path))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: not a Python file")
    logger.info("running user code: importing %s", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except _IMPORT_FAULTS as error:
        del sys.modules[name]
        raise ConfigError(f"{path}: cannot be imported: {type(error).__name__}: {_short(str(error))}") from error
    return module


def _import_module(name: str) -> ModuleType:
    candidates = [f"{package}.{name}" for package in _CUSTOM_PACKAGES]
    found = next((candidate for candidate in candidates if _exists(candidate)), None)
    if found is None:
        if name.partition(".")[0] in sys.stdlib_module_names:
            raise ConfigError(f'Customized("{name}", ...): a module of Python itself cannot serve as user code')
        if not _exists(name):
            raise ConfigError(
                f'Customized("{name}", ...): no module {name}, neither in the custom package nor beside it'
            )
        logger.warning("%s is not in the custom package; taking the top-level module of that name", name)
        found = name
    logger.info("running user code: importing module %s", found)
    try:
        return importlib.import_module(found)
    except _IMPORT_FAULTS as error:
        raise ConfigError(f"{found}: cannot be imported: {type(error).__name__}: {_short(str(error))}") from error


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False
