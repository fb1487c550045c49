"""Running instances: from a command line through all stages to verdicts, files and an exit code."""
