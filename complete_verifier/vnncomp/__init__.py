"""The VNN-COMP harness: which settings a benchmark category gets, and how the competition's scripts run the tool.

Its modules start in a tenth of a second: they import neither torch nor anything that does.
"""
