"""Ranks, parameter stores and tiles: what lives where, and how much is worked on at a time."""
