"""Sound bounds of neural networks."""
