"""What a run shows and leaves behind: progress, results files, statistics, summaries."""
