"""Says what the quickstart's two runs found, and draws the counterexample beside the image that it belongs to.

    python quickstart/show_counterexample.py [--results out] [--picture out/quickstart.png]

Reads the two results files (first line the verdict, then the counterexample) and asks onnxruntime, not the verifier,
how the network reads the two images.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
SIDE = 8
ROUNDING = 1e-6  # a printed float32 lies in the box up to this


@dataclass(frozen=True, slots=True)
class Property:
    """The image that a VNN-LIB file of the quickstart is about; train.py wrote it into the comments."""

    image: NDArray[np.float32]  # [8, 8], grey values in [0, 1]
    label: int
    radius: float


def read_property(path: Path) -> Property:
    text = path.read_text(encoding="utf-8")
    grey = [float(word) for row in re.findall(r"^; pixels (.*)$", text, re.MULTILINE) for word in row.split()]
    label, radius = (re.search(rf"^; {word} (\S+)$", text, re.MULTILINE) for word in ("label", "radius"))
    if len(grey) != SIDE * SIDE or label is None or radius is None:
        raise SystemExit(f"{path}: no image, label and radius in its comments: write it again with train.py")
    return Property(np.array(grey, np.float32).reshape(SIDE, SIDE) / 16, int(label[1]), float(radius[1]))


def read_verdict(path: Path) -> str:
    if not path.is_file():
        raise SystemExit(
            f"{path}: no results file: did `abcrown --config quickstart/{path.stem}.yaml` end with an error?"
        )
    return path.read_text(encoding="utf-8").split(maxsplit=1)[0]


def read_counterexample(path: Path) -> NDArray[np.float32]:
    """The X values that follow the verdict as `(X_0 0.25)`, in order: [8, 8]."""
    found = re.findall(r"\(\s*X_(\d+)\s+([^\s()]+)\s*\)", path.read_text(encoding="utf-8"))
    values = {int(index): float(value) for index, value in found}
    if sorted(values) != list(range(SIDE * SIDE)):
        raise SystemExit(
            f"{path}: {len(values)} of the {SIDE * SIDE} values X_0 to X_{SIDE * SIDE - 1} follow the verdict"
        )
    return np.array([values[i] for i in range(SIDE * SIDE)], np.float32).reshape(SIDE, SIDE)


def classify(network: Path, image: NDArray[np.float32]) -> int:
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: image[None, None]})
    return int(np.argmax(scores))


def draw(asked: Property, found: NDArray[np.float32], read_as: int, picture: Path) -> None:
    """Original, counterexample and their difference, side by side."""
    import matplotlib

    matplotlib.use("Agg")  # a file is wanted, no window
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
    panels = (
        (asked.image, "gray", 0.0, 1.0, f"original: read as {asked.label}"),
        (found, "gray", 0.0, 1.0, f"counterexample: read as {read_as}"),
        (found - asked.image, "RdBu_r", -asked.radius, asked.radius, f"difference (at most {asked.radius:g})"),
    )
    for place, (values, colours, low, high, title) in zip(axes, panels, strict=True):
        shown = place.imshow(values, cmap=colours, vmin=low, vmax=high)
        place.set_title(title)
        place.set_axis_off()
    figure.colorbar(shown, ax=axes[-1], shrink=0.8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def explain_robust(verdict: str, asked: Property) -> bool:
    if verdict != "unsat":
        print(f"robust.vnnlib: '{verdict}' where a proof ('unsat') was expected.")
        return False
    print(f"Proved:  change every pixel of this {asked.label} by up to {asked.radius:g} (of black 0 to white 1):")
    print(f"         the network still reads a {asked.label}. That covers every such image, not a sample.")
    return True


def explain_fragile(verdict: str, asked: Property, results: Path, network: Path, picture: Path) -> bool:
    if verdict != "sat":
        print(f"fragile.vnnlib: '{verdict}' where a counterexample ('sat') was expected.")
        return False
    found = read_counterexample(results)
    before, after = classify(network, asked.image), classify(network, found)
    inside = float(np.abs(found - asked.image).max()) <= asked.radius + ROUNDING
    if not inside or before != asked.label or after == asked.label:
        print(f"fragile.vnnlib: onnxruntime does not confirm the counterexample in {results}:")
        print(f"                original read as {before}, counterexample as {after}, inside the region: {inside}.")
        return False
    draw(asked, found, after, picture)
    print(f"Refuted: the same claim about another {asked.label}. Changed by no more than {asked.radius:g} a pixel,")
    print(f"         it is read as a {after}. See {picture}")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("out"), help="folder of robust.txt and fragile.txt")
    parser.add_argument("--picture", type=Path, default=Path("out/quickstart.png"), help="the picture to write")
    arguments = parser.parse_args()
    robust, fragile = (arguments.results / f"{name}.txt" for name in ("robust", "fragile"))
    print()
    proved = explain_robust(read_verdict(robust), read_property(HERE / "robust.vnnlib"))
    asked = read_property(HERE / "fragile.vnnlib")
    refuted = explain_fragile(read_verdict(fragile), asked, fragile, HERE / "digits.onnx", arguments.picture)
    return 0 if proved and refuted else 1


if __name__ == "__main__":
    sys.exit(main())
