"""The table of all built-in builders, by operator of the standard ONNX domain."""

from __future__ import annotations

from collections.abc import Mapping

from auto_LiRPA.graph import (
    builders_activation,
    builders_arithmetic,
    builders_exponential,
    builders_indexing,
    builders_linear,
    builders_reduce,
    builders_shape,
    builders_spatial,
)
from auto_LiRPA.graph.node_view import Builder

BUILDERS: Mapping[str, Builder] = {
    **builders_activation.BUILDERS,
    **builders_arithmetic.BUILDERS,
    **builders_exponential.BUILDERS,
    **builders_indexing.BUILDERS,
    **builders_linear.BUILDERS,
    **builders_reduce.BUILDERS,
    **builders_shape.BUILDERS,
    **builders_spatial.BUILDERS,
}
