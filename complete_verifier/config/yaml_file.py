"""YAML text: the values of a file, with every fault of it as one line; and single values as text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from auto_LiRPA.errors import ConfigError
from complete_verifier.config.readers import show

DEEPEST = 40  # levels of nesting; no option needs more than 6
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's parser where PyYAML was built with it


def read_yaml_file(path: Path, name: str) -> object:
    """The content of a YAML file; `name` is how messages call it. ConfigError if it cannot be read."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file; --config takes the path of a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    return read_yaml(text, name)


def read_yaml(text: bytes | str, name: str) -> object:
    """The value written in `text`. Only plain values: a tag that would build an object is refused."""
    try:
        _refuse_depth(text, name)
        loader = _LOADER(text)
        try:
            node = loader.get_single_node()
            _refuse_duplicates(node, name)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise ConfigError(f"{name}: line {line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # PyYAML's own constructors, on a date such as 2020-13-45
        raise ConfigError(f"{name}: a value cannot be read: {error}; put it in quotes") from None


def _refuse_depth(text: bytes | str, name: str) -> None:
    """libyaml builds nodes by recursion and ends the process where the stack ends; its events come one by one."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise ConfigError(f"{name}: nested more than {DEEPEST} levels deep")


def yaml_text(value: object) -> str:
    """One value as YAML on one line."""
    text: str = yaml.safe_dump(plain(value), default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def plain(value: object) -> object:
    """A value as YAML knows it: tuples as lists, dataclasses as mappings."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return list(value) if isinstance(value, tuple) else value


def _refuse_duplicates(root: yaml.Node | None, name: str) -> None:
    """YAML forbids a key twice in one mapping; PyYAML would silently take the last."""
    for mapping in _mappings(root):
        lines: dict[str, int] = {}
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines and key.tag != "tag:yaml.org,2002:merge":
                raise ConfigError(f"{name}: line {line}: {show(key.value)} is already given in line {lines[key.value]}")
            lines[key.value] = line


def _mappings(root: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    waiting, seen = [root] if root is not None else [], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias, perhaps to a node around it
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            waiting.extend(child for pair in node.value for child in pair)
        elif isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
