"""Operators that users add to the reader (the built-in ones are tables in `builders_*`), and the nearest known name."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from auto_LiRPA.errors import ConfigError
from auto_LiRPA.operators.base import Operator

OperatorKey = tuple[str, str]  # (domain, op_type); the standard domain is ""


@runtime_checkable
class CustomOperator(Protocol):
    """A user's operator class: an `Operator` that can be made from an ONNX node."""

    @classmethod
    def from_onnx(cls, attributes: Mapping[str, object], in_shapes: tuple[tuple[int, ...], ...]) -> Operator:
        """The operator for one node.

        Args:
            attributes: the node's attributes as plain values; constant inputs stand beside them as tensors, under
                ``"input_<position>"``.
            in_shapes: per-sample shapes of the inputs that depend on the network's input, in order.
        """


class CustomOperators:
    """Operator classes that users registered, by ``(domain, op_type)``."""

    def __init__(self) -> None:
        self._classes: dict[OperatorKey, type[CustomOperator]] = {}
        self._lock = threading.Lock()

    def register(self, name: str, operator: type[CustomOperator]) -> None:
        """Add a class under ``"ns::Name"``; registering a taken name with another class is an error."""
        if not callable(getattr(operator, "from_onnx", None)):
            raise ConfigError(f"register_custom_op({name!r}): {operator!r} has no class method from_onnx")
        with self._lock:
            known = self._classes.setdefault(operator_key(name), operator)
        if known is not operator:
            raise ConfigError(f"register_custom_op: {name!r} is taken by {known.__name__}; unregister_custom_op first")

    def unregister(self, name: str) -> None:
        """Remove a class; an unknown name is an error."""
        with self._lock:
            if self._classes.pop(operator_key(name), None) is None:
                raise ConfigError(f"unregister_custom_op: {name!r} is not registered")

    def find(self, key: OperatorKey) -> type[CustomOperator] | None:
        """The class for a node, if there is one."""
        return self._classes.get(key)

    def names(self) -> tuple[str, ...]:
        """All names, as they were registered."""
        return tuple("::".join(key) for key in self._classes)


# Registration is process-wide by the public interface (`register_custom_op(name, cls)` has no graph to speak of).
CUSTOM_OPERATORS = CustomOperators()


def register_custom_op(name: str, operator: type[CustomOperator]) -> None:
    """Make the reader build ``operator`` for ONNX nodes of type ``"ns::Name"`` (docs/custom_operator.md)."""
    CUSTOM_OPERATORS.register(name, operator)


def unregister_custom_op(name: str) -> None:
    """Undo `register_custom_op`."""
    CUSTOM_OPERATORS.unregister(name)


def operator_key(name: str) -> OperatorKey:
    """``"ns::Name"`` -> ``("ns", "Name")``."""
    domain, separator, op_type = name.rpartition("::")
    if not op_type or (separator and not domain):
        raise ConfigError(f"custom operator name {name!r}: expected 'namespace::Name'")
    return domain, op_type


def nearest(op_type: str, known: Iterable[str]) -> str | None:
    """The supported operator whose name comes closest."""
    names = {name.lower(): name for name in known}
    found = difflib.get_close_matches(op_type.lower(), names, n=1, cutoff=0.4)
    return names[found[0]] if found else None
