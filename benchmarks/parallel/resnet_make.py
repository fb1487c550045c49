"""Makes experiment 8's networks and questions: trains, exports to ONNX, looks for the image and the radius.

    python benchmarks/parallel/resnet_make.py --names large medium --folder out/models/exp8 --out figures.jsonl

`--reduced` makes small ones, on a CPU in seconds. What is there already is kept. A figure says how the training ended
and what is known of the question.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.parallel import measuring, resnets  # noqa: E402
from benchmarks.parallel.resnet_points import Finder, Wanted  # noqa: E402
from complete_verifier.config import load_config  # noqa: E402

logger = logging.getLogger(__name__)

CONFIGS = Path(__file__).resolve().parent.parent.parent / "exp_configs" / "parallel"
WANTED: dict[str, Wanted] = {"large": "unsat", "medium": "unknown"}
ENOUGH = 0.5  # of the last samples certified by intervals; else another rate is tried
PAIRS = 3  # of classes, tried in order


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", choices=sorted(WANTED), default=sorted(WANTED))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--reduced", action="store_true")
    parser.add_argument("--sets", nargs="*", default=[], metavar="KEY=VALUE", help="replace its settings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in options.names:
        told = options.folder / f"resnet_{name}.json"
        if not told.exists():
            figure = made(name, options)
            told.write_text(json.dumps(figure), encoding="utf-8")
        line = told.read_text(encoding="utf-8")
        print(line, flush=True)
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with open(options.out, "a", encoding="utf-8") as file:
                file.write(line + "\n")


def made(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One network with its question; the file's presence says that both are whole, so it is written last."""
    options.folder.mkdir(parents=True, exist_ok=True)
    size = resnets.SIZES[("reduced " if options.reduced else "") + name]
    context = measuring.join(measuring.settings_of("single"))
    net, trained = _trained(replace(size, radius=0.0), options.seed, context.device)
    began = time.perf_counter()
    resnets.export(net, size, options.folder / f"resnet_{name}.onnx")
    export_s = time.perf_counter() - began
    began = time.perf_counter()
    words = [word for one in options.sets for word in ("--set", one)]
    asked = CONFIGS / f"exp8_resnet_{name}.yaml"
    config = load_config(["--config", str(asked), "--device", context.device.type, *words]).config
    images = resnets.patterns(size, options.seed)
    finder = Finder(net, images, config, options.folder, f"resnet_{name}", context)
    pairs = [(i, i + 1) for i in range(min(PAIRS, size.classes - 1))]
    point = finder.find(WANTED[name], size.radius, pairs, size.most_unstable)
    finder.write(point)
    return {
        "what": "resnet_made",
        "exp": 8,
        "net": name,
        "reduced": options.reduced,
        "weights_mib": round(resnets.weight_bytes(net) / 2**20, 2),
        "layers": resnets.layers(net),
        **asdict(size),
        "trained": asdict(trained),
        "export_s": round(export_s, 1),
        "find_s": round(time.perf_counter() - began, 1),
        "question": asdict(point),
        "device": torch.cuda.get_device_name() if context.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "world": 1,
        "command": measuring.command(1),
    }


@cache
def _trained(size: resnets.Size, seed: int, device: torch.device) -> tuple[torch.nn.Sequential, resnets.Trained]:
    """At the network's rate, or the best of several where that goes wrong. Once for all of its questions."""
    found = []
    for factor in (1.0, 0.5, 2.0):
        net = resnets.build(size, seed)
        trained = resnets.train(net, replace(size, rate=factor * size.rate), seed, device)
        logger.info("rate %g: %s", factor * size.rate, trained)
        found.append((trained.certified, trained.right, -factor, net, trained))
        if trained.certified >= ENOUGH:
            break
    return max(found, key=lambda one: one[:3])[3:]


if __name__ == "__main__":
    main()
