"""Every numeric tolerance of the project, each with its reason. Comparisons lean towards `unknown`."""

from __future__ import annotations

# Width added to a denominator u - l so that a degenerate interval never divides by zero.
DENOMINATOR_FLOOR = 1e-12
