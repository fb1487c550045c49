"""Tests of complete_verifier/attack."""
