"""The configuration as users' modules know it: nested mappings that can be written to while a hook runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from auto_LiRPA.errors import ConfigError
from complete_verifier.config import Config
from complete_verifier.config.options import option_table

Tree = dict[str, Any]

_current: ContextVar[Tree] = ContextVar("configuration of the hook that runs")


class ConfigView(MutableMapping[str, Any]):
    """`arguments.Config`: the settings of the instance at work, by section. Written values hold for that instance."""

    def __getitem__(self, key: str) -> Any:
        return self.all[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.all[key] = value

    def __delitem__(self, key: str) -> None:
        raise ConfigError(f"user code deletes {key} from arguments.Config; set it instead")

    def __iter__(self) -> Iterator[str]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    @property
    def all(self) -> Tree:
        """The whole tree."""
        tree = _current.get(None)
        if tree is None:
            raise ConfigError("arguments.Config is read outside a hook, where there is no configuration")
        return tree


@contextmanager
def current(tree: Tree) -> Iterator[None]:
    """Within: `arguments.Config` is this tree."""
    token = _current.set(tree)
    try:
        yield
    finally:
        _current.reset(token)


def tree_of(config: Config) -> Tree:
    """All settings as nested dicts with YAML's keys; tuples as lists, as YAML gives them."""
    root: Tree = {}
    for path, option in option_table().items():
        *sections, leaf = path.split(".")
        place = root
        for name in sections:
            place = place.setdefault(name, {})
        value = option.of(config)
        place[leaf] = list(value) if isinstance(value, tuple) else value
    return root


def changes(before: Tree, after: Tree) -> dict[str, object]:
    """The settings, by path, that differ; what is new counts too and is refused where it is read."""
    found: dict[str, object] = {}
    _compare(before, after, "", found)
    return found


def _compare(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str, found: dict[str, object]) -> None:
    for key, value in after.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        old = before.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            _compare(old, value, path, found)
        elif key not in before or not _same(old, value):
            found[path] = value


def _same(old: object, new: object) -> bool:
    """By type as well: True is not 1."""
    return type(old) is type(new) and bool(old == new)
