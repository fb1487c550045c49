"""A transformer so small that every mode of experiment 7 takes seconds on a CPU: one ONNX file and one property.

    python benchmarks/parallel/vit_small.py FOLDER

One block of one head over four tokens of width eight with a residual and a ReLU layer, drawn weights. The property's
threshold lies where the root's bounds leave it open, so that branch and bound has rounds to do.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TOKENS, WIDTH, HIDDEN, OUTPUTS = 4, 8, 16, 3
EPS, SEED = 0.12, 5
THRESHOLD = 1.0  # between the greatest value of the second output over the box and what the root's bounds say of it
Array = NDArray[np.float32]


def make(folder: Path) -> tuple[Path, Path]:
    """The network and the property in ``folder``; those that are there are left as they are."""
    onnx_path, vnnlib_path = folder / "vit_small.onnx", folder / "vit_small.vnnlib"
    if not (onnx_path.exists() and vnnlib_path.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        _write_network(onnx_path)
        _write_property(vnnlib_path)
    return onnx_path, vnnlib_path


def _weights() -> dict[str, Array]:
    gen = np.random.default_rng(SEED)

    def drawn(n_in: int, n_out: int) -> Array:
        return (gen.standard_normal((n_in, n_out)) / n_in**0.5).astype(np.float32)

    found = {name: drawn(WIDTH, WIDTH) for name in ("query", "key", "value", "out")}
    return found | {
        "up": drawn(WIDTH, HIDDEN),
        "down": drawn(HIDDEN, WIDTH),
        "head": drawn(TOKENS * WIDTH, OUTPUTS),
    }


def _write_network(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    nodes = [
        node("Reshape", ["x", "tokens_shape"], ["t"]),
        node("MatMul", ["t", "query"], ["q"]),
        node("MatMul", ["t", "key"], ["k"]),
        node("MatMul", ["t", "value"], ["v"]),
        node("Transpose", ["k"], ["k_t"], perm=[0, 2, 1]),
        node("MatMul", ["q", "k_t"], ["scores"]),
        node("Mul", ["scores", "scale"], ["scaled"]),
        node("Softmax", ["scaled"], ["p"], axis=2),
        node("MatMul", ["p", "v"], ["mixed"]),
        node("MatMul", ["mixed", "out"], ["projected"]),
        node("Add", ["projected", "t"], ["h"]),
        node("MatMul", ["h", "up"], ["u"]),
        node("Relu", ["u"], ["r"]),
        node("MatMul", ["r", "down"], ["d"]),
        node("Add", ["d", "h"], ["block"]),
        node("Flatten", ["block"], ["flat"], axis=1),
        node("MatMul", ["flat", "head"], ["y"]),
    ]
    constants = {
        **_weights(),
        "tokens_shape": np.array([-1, TOKENS, WIDTH], dtype=np.int64),
        "scale": np.array(WIDTH**-0.5, dtype=np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "vit_small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, TOKENS * WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, OUTPUTS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _write_property(path: Path) -> None:
    """The second output is to stay below the threshold."""
    center = np.random.default_rng(SEED + 1).uniform(-1, 1, TOKENS * WIDTH)
    lines = [f"(declare-const X_{i} Real)" for i in range(len(center))]
    lines += [f"(declare-const Y_{i} Real)" for i in range(OUTPUTS)]
    for i, x in enumerate(center):
        lines += [f"(assert (>= X_{i} {x - EPS:.6f}))", f"(assert (<= X_{i} {x + EPS:.6f}))"]
    lines.append(f"(assert (>= Y_1 {THRESHOLD}))")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")

if __name__ == "__main__":
    print(*make(Path(sys.argv[1])))
