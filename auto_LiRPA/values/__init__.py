"""Nouns of the library: intervals, regions, affine pieces. Frozen, shape-checked, no algorithms."""

from auto_LiRPA.values.interval import Interval
from auto_LiRPA.values.lines import Lines
from auto_LiRPA.values.regions import Box, LpBall, Region
from auto_LiRPA.values.windows import Window

__all__ = ["Box", "Interval", "Lines", "LpBall", "Region", "Window"]
