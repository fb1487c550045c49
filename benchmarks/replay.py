"""Checks a results file that says `sat` without any code of the tool: onnxruntime, fractions, and the property's text.

    python benchmarks/replay.py RESULTS NET.onnx PROPERTY.vnnlib

Exact where the competition allows 1e-4: the printed inputs, as decimals, must satisfy every assertion about inputs, and
the outputs that onnxruntime computes for them every assertion about outputs, strict ones strictly.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.spec.oracle import is_counterexample, trees  # noqa: E402

# How far printed outputs may lie from recomputed ones, relative to the largest: another machine may add up otherwise.
_OUTPUT_TOLERANCE = 1e-3
_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64}


def fault(results: str, network: Path, specification: Path) -> str | None:
    """What is wrong with the text of a results file that says `sat`; None if nothing is."""
    word, newline, text = results.partition("\n")
    if word != "sat" or not newline:
        return f"the first line is {word!r}, not sat"
    try:
        x, y = _point(text)
        outputs = _outputs(network, x)
    except ValueError as error:
        return str(error)
    if len(y) != outputs.size:
        return f"{len(y)} outputs are printed, the network has {outputs.size}"
    if not np.isfinite(outputs).all():
        return "the network's outputs are not finite"
    gap = float(np.abs(outputs - np.array([float(value) for value in y])).max())
    if gap > _OUTPUT_TOLERANCE * max(1e-6, float(np.abs(outputs).max())):
        return f"printed outputs are off by {gap:.3g}"
    commands = trees(specification.read_text(encoding="utf-8"))
    declared = [command[1] for command in commands if command[0] == "declare-const"]
    if (sum(name.startswith("X_") for name in declared), sum(name.startswith("Y_") for name in declared)) != (
        len(x),
        len(y),
    ):
        return "the property has other numbers of inputs or outputs"
    if not is_counterexample(commands, x, [Fraction(float(value)) for value in outputs]):
        return "the point does not satisfy the property's assertions"
    return None


def _point(text: str) -> tuple[list[Fraction], list[Fraction]]:
    """Inputs and outputs of the counterexample as printed, X_0, X_1, ... then Y_0, Y_1, ... in one group."""
    try:
        (group,) = trees(text)
        pairs = [(str(name), Fraction(value)) for name, value in group]
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"the counterexample is malformed ({error})") from error
    x = [value for name, value in pairs if name.startswith("X_")]
    y = [value for name, value in pairs if name.startswith("Y_")]
    if [name for name, _ in pairs] != [f"X_{i}" for i in range(len(x))] + [f"Y_{j}" for j in range(len(y))]:
        raise ValueError("names of the counterexample are missing or out of order")
    return x, y


def _outputs(network: Path, x: list[Fraction]) -> np.ndarray:
    """What onnxruntime computes on the file, [n_out]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    shape = [length if isinstance(length, int) and length > 0 else 1 for length in first.shape]
    if int(np.prod(shape)) != len(x):
        raise ValueError(f"{len(x)} inputs are printed, the network has {int(np.prod(shape))}")
    point = np.array([float(value) for value in x]).astype(_TYPES[first.type]).reshape(shape)
    return np.asarray(session.run(None, {first.name: point})[0]).reshape(-1)


def main() -> int:
    results, network, specification = (Path(word) for word in sys.argv[1:])
    found = fault(results.read_text(encoding="utf-8"), network, specification)
    print(found or "a counterexample")
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main())
