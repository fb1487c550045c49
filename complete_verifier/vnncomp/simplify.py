"""A simpler ONNX file that computes the same: `python -m complete_verifier.vnncomp.simplify NET.onnx RESULT.onnx`.

A program of its own: it ends with a traceback if anything goes wrong, and its caller then keeps the network as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

_TRIALS = 3  # random inputs on which both must agree
_TOLERANCE = 1e-4  # relative to the largest output


def simplify(network: Path, result: Path) -> None:
    """Fold constants and write the result, if it gives the same outputs on random inputs.

    Raises:
        ValueError: outputs differ. Whatever the ONNX libraries raise.
    """
    import onnx
    from onnxscript import optimizer

    simpler = optimizer.optimize(onnx.load(network))
    onnx.checker.check_model(simpler)
    _compare(network.read_bytes(), simpler.SerializeToString())
    onnx.save(simpler, result)


def _compare(before: bytes, after: bytes) -> None:
    import numpy as np
    import onnxruntime

    sessions = [onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]) for model in (before, after)]
    shapes = {
        entry.name: [length if isinstance(length, int) else 1 for length in entry.shape]
        for entry in sessions[0].get_inputs()
    }
    generator = np.random.default_rng(0)
    for _ in range(_TRIALS):
        feed = {name: generator.random(shape).astype(np.float32) for name, shape in shapes.items()}
        first, second = (session.run(None, feed)[0] for session in sessions)
        if first.shape != second.shape:
            raise ValueError(f"output shapes {first.shape} and {second.shape} differ")
        gap = float(np.abs(first - second).max(initial=0.0))
        if not gap <= _TOLERANCE * max(1.0, float(np.abs(first).max(initial=0.0))):
            raise ValueError(f"outputs differ by {gap:.3g}")


if __name__ == "__main__":
    simplify(Path(sys.argv[1]), Path(sys.argv[2]))
