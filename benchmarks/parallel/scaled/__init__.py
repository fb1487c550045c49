"""Strong and weak scaling over ranks, measured and predicted; `benchmarks/parallel/scaling.py` runs it."""
