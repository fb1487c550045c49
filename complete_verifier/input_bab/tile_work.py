"""What a round does with one tile of boxes: bound, close, clip, look for counterexamples, choose the next cuts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from complete_verifier.input_bab.bounding import Bounded, Bounder
from complete_verifier.input_bab.choice import scored, tried
from complete_verifier.input_bab.clip import clip
from complete_verifier.input_bab.domains import Domains
from complete_verifier.input_bab.probe import candidates
from complete_verifier.input_bab.settings import InputBabSettings, Leaf

# Dimensions that are ordered for cuts of several levels.
MOST_LEVELS = 10


@dataclass(frozen=True, slots=True)
class Candidate:
    """An input ``[*in]`` that violates a clause by the graph's own arithmetic; the less ``worst``, the deeper."""

    worst: float
    x: np.ndarray


@dataclass(frozen=True, slots=True)
class TileDone:
    """``open``: the domains that are left, with their next cuts. ``stuck``: boxes too small to cut, now dropped."""

    open: Domains
    visited: int
    stuck: int
    candidates: tuple[Candidate, ...]
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, slots=True)
class TileWork:
    """The steps, and what they need. A domain's outcome depends on its tile alone."""

    bounder: Bounder
    settings: InputBabSettings
    hint: Tensor | None
    most_candidates: int

    def run(self, domains: Domains, try_cuts: bool) -> TileDone:
        """``try_cuts``: whether brute force, where it is the method, chooses the next cuts.

        Raises:
            OutOfTime: the deadline passed.
        """
        bounder, visited = self.bounder, len(domains)
        leaves: list[Leaf] = []
        bounded = bounder.bound(domains)
        refuted = bounder.refuted(domains, bounded.gap, bounded.margin)
        domains = self._close(replace(domains, margin=bounded.margin, phase=bounded.phase), refuted, leaves)
        if self.settings.clip.enabled:
            domains = self._clipped(domains, bounded, leaves)
        keep = domains.open.any(1).nonzero().squeeze(-1)
        if len(keep) == 0:
            return TileDone(domains.pick(keep), visited, 0, (), tuple(leaves))
        domains = replace(domains, half=bounder.next_half(domains, bounded)).pick(keep)
        bounded = Bounded(*(getattr(bounded, name)[keep] for name in Bounded.__slots__))
        found = self._candidates(domains, bounded)
        order = self._choose(domains, bounded, try_cuts)
        cuttable = (order >= 0).any(1)
        left = replace(domains, order=order).pick(cuttable.nonzero().squeeze(-1))
        return TileDone(left, visited, len(domains) - len(left), found, tuple(leaves))

    def _clipped(self, domains: Domains, bounded: Bounded, leaves: list[Leaf]) -> Domains:
        half = self.bounder.half_of_rows(domains, bounded)
        clipped, empty = clip(domains, half, self.settings.clip.iterations)
        # the leaf is the box before it was clipped: that is where the clause is refuted
        closed = self._close(domains, empty & self.bounder.groups.real[domains.group].any(-1), leaves)
        return replace(closed, lower=clipped.lower, upper=clipped.upper)

    def _close(self, domains: Domains, refuted: Tensor, leaves: list[Leaf]) -> Domains:
        """Refuted clauses are no longer open."""
        if self.settings.record_leaves:
            clause = self.bounder.groups.clause[domains.group]
            for d, g in (domains.open & refuted).nonzero().tolist():
                leaves.append(Leaf(int(clause[d, g]), domains.lower[d], domains.upper[d]))
        return replace(domains, open=domains.open & ~refuted)

    def _candidates(self, domains: Domains, bounded: Bounded) -> tuple[Candidate, ...]:
        if self.most_candidates == 0:
            return ()
        points, worst = candidates(
            self.bounder.graph, self.bounder.groups, domains, bounded, self.most_candidates
        )
        if len(points) == 0:
            return ()
        return tuple(Candidate(w, x) for w, x in zip(worst.tolist(), points.cpu().numpy(), strict=True))

    def _choose(self, domains: Domains, bounded: Bounded, try_cuts: bool) -> Tensor:
        settings = self.settings.score
        most = min(MOST_LEVELS, domains.lower.shape[1])
        order = scored(domains, bounded, self.bounder.groups, settings, most)
        if settings.method == "brute-force" and try_cuts:
            order = tried(domains, order, settings, self._margin, self.settings.partitions, self.hint)
        return order

    def _margin(self, children: Domains) -> Tensor:
        return self.bounder.bound(children).margin
