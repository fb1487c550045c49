"""The search for counterexamples: gradient attacks on the network, confirmed by onnxruntime on the original file."""
