"""Peak memory and time of the bound engine, one case per process (DESIGN 6); prints one JSON line.

    python benchmarks/bounds.py mlp --hidden 4096 --depth 4 --tile 512 --device cuda
    python benchmarks/bounds.py resnet --method alpha-CROWN --interm stream --device cuda
    python benchmarks/bounds.py onnx --path NET.onnx --eps 0.05 --method alpha-CROWN --device cuda
    python benchmarks/bounds.py all --device cuda --out results.jsonl
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm, load_onnx
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from benchmarks import networks
from benchmarks.live_bytes import LiveBytes

MIB = 2**20


def margins(classes: int, label: int) -> Tensor:
    """Rows y_label - y_j for every other class: ``[1, classes - 1, classes]``."""
    others = [j for j in range(classes) if j != label]
    c = torch.zeros(1, classes - 1, classes)
    c[0, :, label] = 1
    c[0, torch.arange(classes - 1), others] = -1
    return c


def case(args: argparse.Namespace) -> tuple[nn.Module, Tensor, float, Tensor | None]:
    """Network, centre, radius and specification of a case."""
    gen = torch.Generator().manual_seed(1)
    if args.case == "mlp":
        return networks.mlp(args.hidden, args.depth), torch.rand(1, 784, generator=gen), 0.02, None
    if args.case == "resnet":
        net = networks.resnet()
        x = torch.rand(1, 3, 32, 32, generator=gen)
        label = int(net(x).argmax())
        return net, x, 1 / 255, margins(100, label)
    net = load_onnx(args.path)
    x = torch.rand(1, *net.graph.input_shape, generator=gen) if args.center is None else torch.load(args.center)
    label = int(net(x).argmax())
    return net, x, args.eps, margins(net.graph.nodes[net.graph.output].size, label)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run one case: a warm-up, then the median of the repeats; peak of the repeats alone."""
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.zeros(8, 8, device=device) @ torch.zeros(8, 8, device=device)  # the CUDA context and cuBLAS exist
        torch.cuda.synchronize()
    net, x, eps, c = case(args)
    began = time.perf_counter()
    tile: Any = args.tile if args.tile == "auto" else int(args.tile)
    context = DistributedContext.single(device, ParallelSettings(tile_rows=tile))
    options = {
        "compare_crown_with_ibp": args.compare,
        "optimize_bound_args": {"iteration": args.iterations, "lr_alpha": 0.1},
    }
    if args.interm:
        options["optimize_bound_args"]["interm_alpha"] = args.interm  # type: ignore[index]
    net = net.to(device)
    bounded = BoundedModule(net, x.to(device), bound_opts=options, device=device, parallel=context)
    build_s = time.perf_counter() - began
    region = PerturbationLpNorm(norm=float("inf"), eps=eps)
    bx = BoundedTensor(x.to(device), region)
    spec = None if c is None else c.to(device)

    def run() -> Any:
        return bounded.compute_bounds(x=(bx,), C=spec, method=args.method, bound_upper=c is None)

    def sync() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    result: dict[str, Any] = {k: v for k, v in vars(args).items() if v is not None} | {"eps": eps}
    with torch.no_grad():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        lower = run()[0]
        sync()
        result.update(build_s=round(build_s, 3), first_ms=round(1e3 * (time.perf_counter() - began), 1))
        result.update(lower_sum=float(lower.double().sum()))
        del lower
        times = []
        meter = LiveBytes()
        if device.type == "cuda":
            if args.repeats:
                torch.cuda.reset_peak_memory_stats()
            result["resident_mib"] = round(torch.cuda.memory_allocated() / MIB, 1)
        for _ in range(args.repeats):
            sync()
            began = time.perf_counter()
            run()
            sync()
            times.append(time.perf_counter() - began)
        if device.type == "cuda":
            result["peak_mib"] = round(torch.cuda.max_memory_allocated() / MIB, 1)
            result["reserved_mib"] = round(torch.cuda.max_memory_reserved() / MIB, 1)
            result["device_name"] = torch.cuda.get_device_name()
        else:
            with meter:
                run()
            result["live_peak_mib"] = round(meter.peak / MIB, 1)
        weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in net.parameters()}
        result["weights_mib"] = round(sum(weights.values()) / MIB, 1)
    result["ms"] = round(1e3 * sorted(times)[len(times) // 2], 2) if times else None
    result["torch"] = torch.__version__
    return result


def all_cases(args: argparse.Namespace) -> None:
    """Every case of docs/results.md, each in its own process."""
    common = ["--device", args.device, "--repeats", str(args.repeats)]
    cases: list[list[str]] = []
    for hidden, depth in ((1024, 4), (4096, 4), (8192, 4), (4096, 8)):
        for tile in ("512", "auto"):
            cases.append(["mlp", "--hidden", str(hidden), "--depth", str(depth), "--tile", tile])
    cases.append(["resnet"])
    cases.append(["resnet", "--method", "alpha-CROWN", "--interm", "stream", "--repeats", "0"])
    cases.append(["resnet", "--method", "alpha-CROWN", "--interm", "keep", "--repeats", "0"])
    if args.path:
        cases.append(["onnx", "--path", args.path, "--eps", "0.05", "--method", "alpha-CROWN"])
    with open(args.out, "a", encoding="utf-8") as out:
        for extra in cases:
            command = [sys.executable, __file__, extra[0], *common, *extra[1:]]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=240)
                line = done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr[-600:]
            except subprocess.TimeoutExpired:
                line = "timed out"
            out.write((line if done.returncode == 0 else json.dumps({"case": extra, "error": line})) + "\n")
            out.flush()
            print(" ".join(extra), line, flush=True)  # noqa: T201 (a script's own output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=["mlp", "resnet", "onnx", "all"])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--path")
    parser.add_argument("--center")
    parser.add_argument("--eps", type=float, default=0.05)
    parser.add_argument("--tile", default="auto")
    parser.add_argument("--method", default="CROWN")
    parser.add_argument("--interm")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="bounds.jsonl")
    args = parser.parse_args()
    if args.case == "all":
        all_cases(args)
    else:
        print(json.dumps(measure(args)))  # noqa: T201 (a script's own output)


if __name__ == "__main__":
    main()
