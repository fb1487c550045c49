"""The question: reading a property (VNN-LIB 1.0 or a robustness margin), its tensors, and its counterexamples."""
