"""The branch-and-bound loop on activation splits: rounds that one schedule makes, on one rank or on many."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from auto_LiRPA.bounds.columns import Layout
from auto_LiRPA.bounds.domains.ascent import AscentSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import NonlinearOperator
from auto_LiRPA.parallel.numerics import full_precision
from complete_verifier.bab.bounding import make_bounder
from complete_verifier.bab.clip import Clipper, ClipSettings, make_clipper
from complete_verifier.bab.domains import Domains
from complete_verifier.bab.expansion import Expander
from complete_verifier.bab.keeper import Keeper
from complete_verifier.bab.leaves import LeafSolver
from complete_verifier.bab.lockstep import lockstep_of
from complete_verifier.bab.pace import Pace
from complete_verifier.bab.roots import root_domains
from complete_verifier.bab.rounds import OnProgress, Rounds, SearchState
from complete_verifier.bab.same_start import check_same_start
from complete_verifier.bab.schedule_free import FreeRunning
from complete_verifier.bab.schedule_synchronous import SYNCHRONOUS_TILE, Synchronous
from complete_verifier.bab.settings import BabResult, BabSettings, Tiling
from complete_verifier.bab.shrink import shrunk
from complete_verifier.bab.spread_search import for_search, with_whole_weights
from complete_verifier.bab.subproblems import OnCandidate
from complete_verifier.branching.brancher import make_brancher
from complete_verifier.branching.columns import make_columns
from complete_verifier.branching.layout import make_layout
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

# Domains bounded together in the free-running schedule: as fits caches, or a GPU's width. On a GPU a candidate of
# look-ahead costs two thirds of a domain's memory and one pass. Small networks have so many more that a tile's neurons
# of all layers are `GPU_TILE_ELEMENTS` at most.
GPU_TILE, LARGEST_GPU_TILE, GPU_TILE_ELEMENTS = 4096, 2**14, 2**25
CPU_TILE_ELEMENTS = 2**17
# A network is small, for the synchronous schedule on a GPU, if a tile's neurons are so many at most.
SMALL_TILE_ELEMENTS = 2**24
# Iterations between two looks at what is proved: on a GPU a look costs launches, and an iteration too many at the end.
LOOK_EVERY_CUDA = 5


def search(
    problem: Problem,
    start: IncompleteResult,
    settings: BabSettings,
    on_progress: OnProgress | None = None,
    on_candidate: OnCandidate | None = None,
    keeper: Keeper | None = None,
) -> BabResult:
    """Try to close every clause that the incomplete stage left open. Ranks that share domains call it together.

    Args:
        start: the same on every rank.
        on_progress: told after each round where all ranks together stand.
        on_candidate: called with an input (``[*input]``) that an LP leaf found to violate its clause; where it is
            confirmed, it is called on all other ranks too.
        keeper: writes checkpoints, and may have one to go on from (``start`` is what that search began with, then).

    Returns:
        The same on every rank. ``closed`` only if every leaf of every clause's tree was proved. Any limit leaves it
        False.

    Raises:
        ConfigError: a branching method that is not available.
    """
    with torch.no_grad(), full_precision():
        problem, start = for_search(problem, start)
        return _Search(problem, start, settings, on_progress, on_candidate, keeper or Keeper(None, None)).run()


class _Search(Rounds[Domains]):
    """A search over activation splits: what its rounds are made of."""

    def __init__(
        self,
        problem: Problem,
        start: IncompleteResult,
        settings: BabSettings,
        on_progress: OnProgress | None,
        on_candidate: OnCandidate | None,
        keeper: Keeper,
    ) -> None:
        self.context, self.clock, self.keeper, self.settings = problem.context, problem.clock, keeper, settings
        self.on_progress, self.on_candidate = on_progress, on_candidate
        self.device, dtype = start.lower.device, start.lower.dtype
        stored = torch.float16 if settings.half_variables and dtype == torch.float32 else dtype
        self.roots = root_domains(problem, start, make_layout(problem.graph, start.intermediate), stored)
        check_same_start(problem, start, self.roots, settings.synchronous)
        own = replace(problem, context=problem.context.within_domains())
        self.problem, self.start = shrunk(own, start)
        self.layout: Layout = make_layout(self.problem.graph, self.start.intermediate)
        self.lockstep = lockstep_of(self.context, self.problem.graph)
        # a synchronous job's height is the same in every mode, and not every mode shrinks
        tiling = make_tiling(problem if settings.synchronous else self.problem, settings, self.device)
        clipper = None if settings.clip is None else self._clipper(settings.clip)
        if clipper is not None:
            self.roots = clipper.opened(self.roots)
        leaf_solver = _leaf_solver(self.problem, self.start, self.layout)
        if self.lockstep and self.layout.complete and self.problem.graph.spread is None:
            leaf_solver()  # it copies the weights: all ranks at once, or never
        at = self.context.at  # what follows refers to no search: its memory is free as soon as it has ended
        expander = Expander(
            settings=settings,
            layout=self.layout,
            bounder=make_bounder(
                self.problem, self.start, self.layout, ascent_settings(settings, self.device), tiling, self.lockstep
            ),
            brancher=make_brancher(
                settings.method,
                make_columns(self.problem.graph, self.layout, dtype, self.device),
                candidates=settings.candidates,
                reduceop=settings.reduceop,
                seed=settings.seed,
            ),
            clipper=clipper,
            lockstep=self.lockstep,
            height=tiling.height,
            leaf_solver=leaf_solver,
            on_candidate=on_candidate,
            seconds_left=problem.clock.left,
            told=lambda step: at(step, patient=True),
        )
        self.pace = Pace(settings, self.device)
        group = self.context.domains
        self.schedule = (
            Synchronous(group, expander, self.roots, tiling.height)
            if settings.synchronous
            else FreeRunning(group, expander, self.pace, self.roots.pick(self._numbers(0, min(1, len(self.roots)))))
        )
        self.state = SearchState(time.monotonic())

    def _clipper(self, settings: ClipSettings) -> Clipper | None:
        """All ranks clip, or none does: one of them may have had no time to prepare."""
        made = make_clipper(with_whole_weights(self.problem), self.start, self.layout, settings)
        return None if self.context.world.some(made is None) else made


def _leaf_solver(problem: Problem, start: IncompleteResult, layout: Layout) -> Callable[[], LeafSolver]:
    """Gives the solver, which is made when it is first asked for."""
    return cache(lambda: LeafSolver(with_whole_weights(problem), start, layout))


def ascent_settings(settings: BabSettings, device: torch.device) -> AscentSettings:
    """How a batch of domains is optimised."""
    prunes = settings.pruning_in_iteration and not settings.synchronous
    return AscentSettings(
        iterations=settings.iterations,
        lr_alpha=settings.lr_alpha,
        lr_beta=settings.lr_beta,
        decay=settings.decay,
        patience=float("inf") if settings.synchronous else settings.patience,
        start_save_best=settings.start_save_best,
        prune_above=settings.pruning_ratio if prunes else float("inf"),
        look_every=LOOK_EVERY_CUDA if device.type == "cuda" else 1,
        ends_early=not settings.synchronous,
    )


def synchronous_tile(graph: Graph, device: torch.device) -> int:
    """Children of a job at most, by the network and the kind of device alone.

    On a GPU a job of a small network is launches for the most part, however few children it has (256x6 on an H100:
    7.6 ms with 1024, 12.8 with 4096): so it may have as many as the least tile of the free-running schedule.
    """
    small = _neurons(graph) * GPU_TILE <= SMALL_TILE_ELEMENTS
    return GPU_TILE if small and device.type == "cuda" else SYNCHRONOUS_TILE


def gpu_tile(graph: Graph) -> int:
    """Domains bounded together in the free-running schedule on a GPU: more of small networks, which else wait for the
    host (256x6 on an H100: 282 000 sub-problems a second by 4096, 384 000 by 16 384)."""
    tile, neurons = GPU_TILE, _neurons(graph)
    while 2 * tile <= LARGEST_GPU_TILE and 2 * tile * neurons <= GPU_TILE_ELEMENTS:
        tile *= 2
    return tile


def _neurons(graph: Graph) -> int:
    return sum(node.size for node in graph.nodes if isinstance(node.op, NonlinearOperator))


def make_tiling(problem: Problem, settings: BabSettings, device: torch.device) -> Tiling:
    """Heights come from the model and the settings alone."""
    # the fused kernels run in every mode, or the bits would differ; the engine captures them where weights stay put
    if settings.synchronous:
        return Tiling(synchronous_tile(problem.graph, device), True)
    if device.type == "cuda":
        return Tiling(gpu_tile(problem.graph), True)
    widest = max(node.size for node in problem.graph.nodes[1:])
    height = 2 ** max(5, min(12, (CPU_TILE_ELEMENTS // max(1, widest)).bit_length() - 1))
    return Tiling(height, False)
