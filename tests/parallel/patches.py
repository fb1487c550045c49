"""Functions replaced wherever a module has imported them by name: for counting, and for planting faults."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PACKAGES = ("auto_LiRPA", "complete_verifier")


@contextmanager
def replaced_everywhere(original: Any, new: Any) -> Iterator[None]:
    """Within: every module's name for ``original`` means ``new``."""
    places = [
        (module, name)
        for path, module in list(sys.modules.items())
        if path.split(".")[0] in PACKAGES and module is not None
        for name, value in list(vars(module).items())
        if value is original
    ]
    if not places:
        raise LookupError(f"{original} is used nowhere")
    for module, name in places:
        setattr(module, name, new)
    try:
        yield
    finally:
        for module, name in places:
            setattr(module, name, original)
