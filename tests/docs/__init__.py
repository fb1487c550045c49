"""The documents say what is true: examples run, links lead somewhere, lists are complete."""
