"""The path under which upstream's users import `BoundedModule`."""

from __future__ import annotations

from auto_LiRPA.bounded_module import BoundedModule

__all__ = ["BoundedModule"]
