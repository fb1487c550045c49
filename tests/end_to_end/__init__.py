"""Whole runs of the command line on files that the tests write themselves."""
