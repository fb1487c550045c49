"""Exact answers by mixed-integer programs, without a licence: SciPy's HiGHS decides clauses and tightens neurons."""
