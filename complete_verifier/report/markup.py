"""Elements of HTML and SVG as text. Whatever is not an element already is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_VOID = frozenset({"input", "meta"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Part = str | int | Markup | None


def element(name: str, /, *parts: Part | Iterable[Part], **attributes: str | float | bool | None) -> Markup:
    """An element with its contents. In attributes `_` is `-`, a last one is dropped (`class_`); None omits one."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-") if key != "viewBox" else key
        words.append(attribute if value is True else f'{attribute}="{escape(_text(value))}"')
    opening = Markup(f"<{' '.join(words)}>")
    return opening if name in _VOID else Markup(f"{opening}{join(parts)}</{name}>")


def join(parts: Iterable[Part | Iterable[Part]]) -> Markup:
    """Parts, one after the other; None and nested ones allowed."""
    text = []
    for part in parts:
        if isinstance(part, Markup):
            text.append(part)
        elif isinstance(part, str | int):
            text.append(Markup(escape(str(part))))
        elif part is not None:
            text.append(join(part))
    return Markup("".join(text))


def _text(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
