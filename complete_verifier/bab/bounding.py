"""Bounds of batches of domains: one face, two ways. ReLU networks take the lean one, all others the general one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from auto_LiRPA.bounds.columns import Layout
from auto_LiRPA.bounds.domains.ascent import AscentSettings
from auto_LiRPA.bounds.domains.batch import ColumnFacts
from auto_LiRPA.bounds.domains.schedule import is_relu_network
from complete_verifier.bab.domains import Domains
from complete_verifier.bab.general_bounding import GeneralBounder
from complete_verifier.bab.lockstep import ALONE, Lockstep
from complete_verifier.bab.relu_bounding import ReluBounder
from complete_verifier.bab.settings import Tiling
from complete_verifier.bab.split import with_split
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

SecondsLeft = Callable[[], float]


class Bounder(Protocol):
    """What a search asks for."""

    def bound(self, domains: Domains, seconds_left: SecondsLeft | None = None) -> Domains:
        """The same domains with better bounds and variables. A bound never gets looser than before."""
        ...

    def quick(self, domains: Domains) -> Tensor:
        """Bounds ``[D]`` by one pass with the domains' variables, nothing optimised."""
        ...

    def facts(self, domains: Domains) -> ColumnFacts:
        """What branching asks for: coefficients and boxes of all columns at the domains' own variables."""
        ...

    def proven(self, domains: Domains, lower: Tensor) -> Tensor:
        """Which domains ``[D]`` the bounds ``[D]`` close."""
        ...


def make_bounder(
    problem: Problem,
    root: IncompleteResult,
    layout: Layout,
    settings: AscentSettings,
    tiling: Tiling,
    lockstep: Lockstep = ALONE,
) -> Bounder:
    """The bounder of a problem's network. With ``lockstep`` all its ranks make the same sequence of calls."""
    kind = ReluBounder if is_relu_network(problem.graph) else GeneralBounder
    return kind(problem, root, layout, settings, tiling, lockstep)


def try_children(
    bounder: Bounder, domains: Domains, parent: Tensor, column: Tensor, tile: int, lockstep: Lockstep = ALONE
) -> tuple[Tensor, Tensor]:
    """Bounds ``[N]`` of both children of ``domains[parent]`` split at ``column`` ``[N]``, each after one pass.

    A candidate whose column is -1 gives its parent's own bound. At most ``tile`` candidates are laid out at a time.
    """
    found: dict[int, list[Tensor]] = {1: [], -1: []}
    own = -(-len(parent) // tile)
    for turn in range(lockstep.turns(own)):
        here = slice(turn * tile, (turn + 1) * tile) if turn < own else slice(0, 1)  # the first one again, for others
        family, at = domains.pick(parent[here]), column[here]
        for side, parts in found.items():
            # picked: nobody else's, and the second side overwrites what the first one has written
            with_split(family.sign, family.value, at, torch.full_like(at, side))
            lower = bounder.quick(family)
            if turn < own:
                parts.append(lower)
    return torch.cat(found[1]), torch.cat(found[-1])
