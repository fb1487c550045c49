"""Bound engine: interval, forward, CROWN and alpha/beta-CROWN over an immutable graph."""
