"""What makes a candidate a counterexample: a run of the original network, exact arithmetic on what is printed."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auto_LiRPA.errors import ModelError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.groups import Group
from complete_verifier.attack.objective import Candidate
from complete_verifier.attack.onnx_network import opened
from complete_verifier.attack.original import OriginalNetwork
from complete_verifier.attack.pace import Deadline
from complete_verifier.attack.problems import Problems, graph_dtype, on_float32_grid
from complete_verifier.spec.counterexample import (
    Counterexample,
    check_printed,
    format_counterexample,
    parse_counterexample,
    printable_input,
)
from complete_verifier.spec.property import Property
from complete_verifier.together import first_rank

logger = logging.getLogger(__name__)

# Nudges of a candidate: from the smallest that float32 shows to an eighth of the widest side, in powers of 4 ...
_NUDGES = tuple(4.0**-power / 8 for power in range(12))
# ... then whole float32 neighbours; and how many of all these points onnxruntime is asked about.
_NEIGHBOURS = (1, 2, 4, 8)
_RANDOM_NEIGHBOURS = 32
_MAX_JUDGED = 16


def confirm(network: str | Path | OriginalNetwork, prop: Property, x: NDArray[np.floating]) -> Counterexample | None:
    """The counterexample that ``x`` ``[n_in]`` is, as it will be printed; None if it is none.

    The original network runs on x (in onnxruntime, where it is a file); decimals for x must lie exactly in a box of the
    property and the outputs violate a clause of it exactly, strictly where the property is strict. Then the printed
    text is read back and checked from the start, as a stranger would. Raises ModelError where the network cannot run.
    """
    network = opened(network)
    point = np.asarray(x).reshape(-1).astype(network.dtype)
    outputs = network.run(point)
    if outputs.size != prop.n_outputs:
        raise ModelError(f"{network.name}: {outputs.size} outputs, but {prop.source} has {prop.n_outputs}")
    decimals = printable_input(prop, point, outputs.tolist())
    if decimals is None:
        return None
    text = format_counterexample(decimals, outputs.tolist())
    check = check_printed(prop, text, network.run, dtype=network.dtype)
    if not check:
        logger.warning("a counterexample of %s was withdrawn: %s", prop.source, check.reason)
        return None
    return parse_counterexample(text)


def confirm_inside(
    network: str | Path | OriginalNetwork, prop: Property, x: NDArray[np.floating]
) -> Counterexample | None:
    """`confirm`; where it refuses, also for the point moved into each exact box that it misses by a rounding.

    A linear program's point is a corner of a box that was rounded outwards: the exact box may end just before it.
    """
    network = opened(network)
    found = confirm(network, prop, x)
    point = np.asarray(x).reshape(-1).astype(network.dtype)
    reach = 2 * np.spacing(np.abs(point)).astype(np.float64)
    for region in prop.regions if found is None else ():
        if ((region.box.lo - reach <= point) & (point <= region.box.hi + reach)).all():
            inside = np.clip(point, *region.box.inward(point.dtype))
            found = None if np.array_equal(inside, point) else confirm(network, prop, inside)
            if found is not None:
                break
    return found


def repair(
    graph: Graph,
    network: str | Path | OriginalNetwork,
    prop: Property,
    problems: Problems,
    candidate: Candidate,
    deadline: Deadline,
    group: Group | None = None,
) -> Counterexample | None:
    """A counterexample close to a candidate that is not exactly one, or None.

    Points a little further along the gradient and float32 neighbours are ranked by the graph's own arithmetic; the
    best go through `confirm`, which alone decides.

    Args:
        problems: those that the candidate was found in.
        deadline: seconds left.
        group: ranks that all repair the same candidate (they may share the weights); the first one confirms.
    """
    problem = problems.select(torch.tensor([candidate.problem], device=problems.box.device))
    start = torch.from_numpy(candidate.x).to(problems.lower).reshape(1, *problems.lower.shape[1:])
    points = _nearby(graph, problem, start)
    with torch.no_grad():
        worst = problem.worst(problem.values(evaluate(graph, points).flatten(1).unsqueeze(1))).squeeze(1)
    best = [points[i].flatten().float().cpu().numpy() for i in worst.argsort(stable=True)[:_MAX_JUDGED].tolist()]

    def first_confirmed() -> Counterexample | None:
        judge = opened(network)
        for point in best:
            if deadline() <= 0:
                return None
            found = confirm(judge, prop, point)
            if found is not None:
                return found
        return None

    return first_confirmed() if group is None else first_rank(group, first_confirmed)


def _nearby(graph: Graph, problem: Problems, x: Tensor) -> Tensor:
    """Points around ``x`` ``[1, *in]`` inside its box: ``[N, *in]``, without x itself."""
    lower, upper = problem.lower[problem.box], problem.upper[problem.box]
    step = (upper - lower).max()
    directions = _descents(graph, problem, x)
    points = [x + nudge * step * direction for direction in directions for nudge in _NUDGES]
    points += [_neighbour(x, direction, count) for direction in directions for count in _NEIGHBOURS]
    generator = torch.Generator().manual_seed(0)
    for _ in range(_RANDOM_NEIGHBOURS):
        signs = torch.randint(-1, 2, x.shape, generator=generator).to(x)
        points.append(_neighbour(x, signs, 1))
    around = torch.minimum(torch.maximum(on_float32_grid(torch.cat(points)), lower), upper)
    around = around.unique(dim=0)
    return around[(around != x).flatten(1).any(1)]


def _descents(graph: Graph, problem: Problems, x: Tensor) -> list[Tensor]:
    """Sign directions ``[1, *in]`` that lower the row furthest from violation, and the sum of all rows."""
    dtype = graph_dtype(graph)
    with torch.enable_grad():
        point = x.detach().to(dtype).requires_grad_()
        values = problem.values(evaluate(graph, point).flatten(1).unsqueeze(1))[0, 0]
        present = values[problem.present[0]]
        if present.numel() == 0 or not present.requires_grad:
            return []
        sums = (present.max(), present.sum())
        gradients = [torch.autograd.grad(s, point, retain_graph=True, materialize_grads=True)[0] for s in sums]
    return [-gradient.nan_to_num(nan=0.0).sign() for gradient in gradients]


def _neighbour(x: Tensor, signs: Tensor, count: int) -> Tensor:
    """x moved by ``count`` float32 numbers in the directions ``signs`` (0 stays)."""
    near = x.float()
    towards = torch.where(signs > 0, torch.inf, torch.where(signs < 0, -torch.inf, near)).float()
    for _ in range(count):
        near = torch.where(signs == 0, near, torch.nextafter(near, towards))
    return near.to(x.dtype)
