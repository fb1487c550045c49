"""Every numeric tolerance of the project, each with its reason. Comparisons lean towards `unknown`."""

from __future__ import annotations

# Least denominator u - l in the derivative of a chord: its square must not underflow in float32.
DENOMINATOR_FLOOR = 1e-12

# Lines of smooth functions are moved outwards by so many units in the last place of the numbers that they are made of
# (function values within 2, products and differences within 1 each, some of them met twice), so that float32 rounding
# cannot push a tangent or a chord through the curve.
LINE_ROUNDING_ULPS = 8.0

# A tangent's slope is raised by so many units in the last place (exp, power and quotient: within 3), because near an
# inflection a slope that is too small by one unit crosses the curve, however little.
SLOPE_ROUNDING_ULPS = 4.0

# Tangents to a root (exponent between 0 and 1) start at this share of the interval: at 0 they would be vertical.
ROOT_TANGENT_SHARE = 1e-3

# Lines over a step at 0 (sign) rise no faster than if the interval reached this far: keeps slopes finite in float32.
STEEPEST_SIGN_INTERVAL = 1e-30
