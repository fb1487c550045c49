"""Operators: one family a file; each has a concrete forward, an interval rule and a backward linear rule."""
