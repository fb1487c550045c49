"""Calling user code: found and imported, with the modules that it expects in sight, its failures as one line."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auto_LiRPA.errors import ConfigError
from complete_verifier.compat.config_view import Tree, changes, current, tree_of
from complete_verifier.config import Config, CustomizedRef, load_mapping, parse_reference, resolve
from complete_verifier.config.options import option_table
from complete_verifier.config.support import check_supported

# Modules that users' files import by these names.
SHIMS: Mapping[str, str] = {
    "arguments": "complete_verifier.compat.arguments",
    "read_vnnlib": "complete_verifier.compat.read_vnnlib",
    "load_model": "complete_verifier.compat.load_model",
}
# What user code may raise because of a mistake in it.
_FAULTS = (
    ImportError, SyntaxError, OSError, NameError, AttributeError, TypeError, ValueError, LookupError, RuntimeError,
    AssertionError, ArithmeticError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hooks:
    """Where user code is looked up: below ``root_path`` if that is set, else in ``config_dir``."""

    root_path: str
    config_dir: Path | None

    def call(self, setting: str, text: str, tree: Tree, *args: object) -> Any:
        """Call the code that ``setting`` names. ``tree`` is what it sees as `arguments.Config`, and may change.

        Raises:
            ConfigError: it cannot be found or imported, or it fails.
        """
        return self._run(setting, text, tree, lambda function, place: function(*args))

    def call_by_name(self, setting: str, text: str, tree: Tree, offers: Mapping[str, object]) -> Any:
        """The same for code that takes what it wants of some named values, in any order.

        Raises:
            ConfigError: as `call`, or it has a parameter of another name.
        """
        return self._run(setting, text, tree, lambda function, place: function(**_taken(function, offers, place)))

    def _run(self, setting: str, text: str, tree: Tree, use: Callable[[Callable[..., Any], str], Any]) -> Any:
        reference = parse_reference(text)
        if not isinstance(reference, CustomizedRef):
            raise ConfigError(f'{setting} = {text}: unknown; give Customized("file.py", "callable")')
        place = f"{setting}: {reference.file_or_module}: {reference.name}"
        with _in_sight(), current(tree):
            function = resolve(reference, self.root_path, self.config_dir)
            try:
                return use(function, place)
            except _FAULTS as error:
                why = " ".join(str(error).split())[:300]
                raise ConfigError(f"{place} fails: {type(error).__name__}: {why}") from error


def _taken(function: Callable[..., Any], offers: Mapping[str, object], place: str) -> dict[str, object]:
    """Those offers that a function takes by name."""
    taken: dict[str, object] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in offers:
            taken[name] = offers[name]
        elif parameter.kind is parameter.VAR_KEYWORD:
            taken.update(offers)
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
            raise ConfigError(f"{place}: parameter {name} is unknown; known are {', '.join(offers)}")
    return taken


def hooks_of(config: Config, config_dir: Path | None) -> Hooks:
    """The place where this configuration's user code is looked up."""
    return Hooks(config.general.root_path, config_dir)


@contextmanager
def _in_sight() -> Iterator[None]:
    """Within: `import arguments` and its like find our modules; what was known by these names is put back."""
    before = {name: sys.modules.get(name) for name in SHIMS}
    sys.modules.update({name: importlib.import_module(path) for name, path in SHIMS.items()})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


# By the time a hook may tune, these have acted: changing them would say one thing and do another.
_TOO_LATE = ("model.", "data.", "specification.", "parallel.", "debug.rescale_vnnlib_ptb", "bab.timeout",
             "bab.override_timeout", "general.device", "general.seed", "general.double_fp", "general.deterministic",
             "general.csv_name", "general.root_path", "general.results_file", "general.adhoc_tuning",
             "general.prepare_only", "bab.decision_thresh")  # fmt: skip


def tuned(config: Config, hooks: Hooks, model: object, handler: object) -> tuple[Config, tuple[str, ...]]:
    """The configuration after `general.adhoc_tuning`, for this instance only, and what it changed.

    Raises:
        ConfigError: the hook fails, or sets what is unknown, unfit, not supported or too late to change.
    """
    text = config.general.adhoc_tuning
    assert text is not None
    tree, before = tree_of(config), tree_of(config)
    hooks.call("general.adhoc_tuning", text, tree, model, handler)
    changed = changes(before, tree)
    return (with_changes(config, changed, "general.adhoc_tuning"), tuple(changed)) if changed else (config, ())


def with_changes(config: Config, changed: Mapping[str, object], origin: str) -> Config:
    """The configuration with some options changed by user code, checked as if they had been written in the file."""
    for path in changed:
        if path.startswith(_TOO_LATE):
            raise ConfigError(f"{origin}: sets {path}, which has acted before it runs; set it in the configuration")
    loaded = load_mapping({}).with_values({}, origin)
    values = {path: option.of(config) for path, option in option_table().items()}
    known = {path: value for path, value in values.items() if value != option_table()[path].default}
    result = loaded.with_values(known, "configuration").with_values(dict(changed), origin)
    check_supported(result)
    return result.config
