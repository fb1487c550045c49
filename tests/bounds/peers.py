"""The bounds that a peer computed on public networks, and ours on the same inputs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from auto_LiRPA.graph.module import load_onnx
from tests.support import shared_dir

Sides = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Reference:
    """One result of the peer: where it comes from, and its bounds."""

    family: str
    case: dict[str, Any]
    result: dict[str, Any]

    @property
    def name(self) -> str:
        keys = ("dtype", "perturbation", "eps", "method", "margin")
        return " ".join([self.case["onnx"], *(f"{k}={self.result.get(k)}" for k in keys)])

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.result["dtype"] == "float64" else torch.float32

    def bounds(self, **options: object) -> Sides:
        """Our alpha-CROWN on the same question, at the same number of iterations."""
        net = load_onnx(shared_dir("benchmarks", *self.case["onnx"].split("/")), dtype=self.dtype)
        # the file holds float32 numbers, used as they are in both types
        shape = (1, *net.graph.input_shape)
        x, low, high = (torch.tensor(self.case[k]).to(self.dtype).reshape(shape) for k in ("x", "x_L", "x_U"))
        if self.result["perturbation"] == "box":
            ball = PerturbationLpNorm(norm=math.inf, x_L=low, x_U=high)
        else:
            ball = PerturbationLpNorm(norm=math.inf, eps=self.result["eps"])
        arguments = {"iteration": self.result["iteration"]}
        if "interm_alpha" in options:
            arguments["interm_alpha"] = options.pop("interm_alpha")
        bounded = BoundedModule(net, x, bound_opts={**options, "optimize_bound_args": arguments})
        margin = bool(self.result.get("margin"))
        rows = torch.tensor(self.case["C"]).to(x).unsqueeze(0) if margin else None
        return bounded.compute_bounds(
            x=(BoundedTensor(x, ball),), C=rows, method="CROWN-Optimized", bound_upper=not margin
        )

    def sides(self, bounds: Sides) -> list[tuple[Tensor, Tensor]]:
        """Per side, the peer's bounds and ours, both as lower bounds: ``[S]`` each."""
        keys = ("margin_lb" if self.result.get("margin") else "lb", "ub")
        pairs = []
        for ours, key, sign in zip(bounds, keys, (1, -1), strict=True):
            if ours is not None:
                peer = torch.tensor(self.result[key], dtype=torch.float64).flatten()
                pairs.append((sign * peer, sign * ours.double().flatten()))
        return pairs

    def looseness(self, bounds: Sides) -> float:
        """How much looser than the peer's ours are, at worst: each row relative to 1 + |peer|; negative is tighter."""
        return max(float(((peer - ours) / (1 + peer.abs())).max()) for peer, ours in self.sides(bounds))

    def looseness_of_sum(self, bounds: Sides) -> float:
        """The same of the sum that alpha-CROWN optimises, relative to the sum of magnitudes."""
        return max(float((peer - ours).sum() / peer.abs().sum()) for peer, ours in self.sides(bounds))


@lru_cache(maxsize=2)
def _cases(family: str) -> list[dict[str, Any]]:
    with open(shared_dir("reference", f"bounds_{family}.json"), encoding="utf-8") as file:
        return list(json.load(file)["cases"])


def alpha_references(family: str) -> list[Reference]:
    """All alpha-CROWN results on the networks that are there."""
    folder = shared_dir("benchmarks")
    return [
        Reference(family, case, result)
        for case in _cases(family)
        if folder.joinpath(*case["onnx"].split("/")).exists()
        for result in case["results"]
        if result["method"].startswith("alpha-CROWN")
    ]
