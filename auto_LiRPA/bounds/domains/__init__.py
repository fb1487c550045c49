"""Bounds of many sub-problems (domains) of one ReLU network at once: one row each, alpha and beta optimised."""
