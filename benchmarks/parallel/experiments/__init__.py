"""The eight experiments of the paper on tensor parallelism and fully sharded data parallelism, a module each."""
