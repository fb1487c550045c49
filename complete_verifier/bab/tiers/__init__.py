"""Where open sub-problems live: device memory, then pinned host memory, then files; the order is known to all tiers."""
