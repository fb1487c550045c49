"""ONNX (or a torch module, exported in memory) -> sorted, immutable graph of typed nodes."""
