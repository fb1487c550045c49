"""The operators of tensor parallelism under the names of an earlier code base, for type checks and imports.

`DifferentiableAllReduce.apply(part, ranks)` adds up over ``ranks`` (a context's `weights`), with identity gradient.
"""

from __future__ import annotations

from auto_LiRPA.operators.parallel_maps import ColumnLinear as BoundLinearTP_Col
from auto_LiRPA.operators.parallel_maps import Exit as BoundLinearTP_Row
from auto_LiRPA.operators.parallel_maps import _Sum as DifferentiableAllReduce

__all__ = ["BoundLinearTP_Col", "BoundLinearTP_Row", "DifferentiableAllReduce"]
