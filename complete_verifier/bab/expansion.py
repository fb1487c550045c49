"""What a round does with parents: choose neurons, split, clip, bound, sort out what is closed, decide leaves by LP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.columns import Layout
from auto_LiRPA.errors import OutOfTime
from complete_verifier.bab.agreement import least
from complete_verifier.bab.bounding import Bounder, try_children
from complete_verifier.bab.clip import Clipper
from complete_verifier.bab.domains import Domains
from complete_verifier.bab.leaves import LeafSolver
from complete_verifier.bab.ledger import Ledger
from complete_verifier.bab.lockstep import Lockstep
from complete_verifier.bab.settings import BabSettings
from complete_verifier.bab.split import split
from complete_verifier.bab.subproblems import Expanded, Numbering, OnCandidate, Share
from complete_verifier.branching.brancher import Brancher, BranchInput

CHOOSE_TILE = 2048  # parents whose neurons are scored together


@dataclass(frozen=True, slots=True, kw_only=True)
class Expander:
    """The means of a search, none of which changes while it runs."""

    settings: BabSettings
    layout: Layout
    bounder: Bounder
    brancher: Brancher
    clipper: Clipper | None
    lockstep: Lockstep
    height: int  # candidates of look-ahead that are laid out together
    leaf_solver: Callable[[], LeafSolver]
    on_candidate: OnCandidate | None
    seconds_left: Callable[[], float]
    told: Callable[[str], None]  # what this rank does by itself while others may have to wait

    @property
    def width(self) -> int:
        """All columns that can be split."""
        return self.layout.width

    def levels(self, parents: Domains, own: bool = True) -> int:
        """Levels split at once: as many as fill the least batch, but no more than every parent has neurons for.

        ``own``: False on a rank without parents, which has no say.
        """
        target = min(self.settings.min_batch_ratio * self.settings.batch_size, self.settings.batch_size)
        levels = 1
        while len(parents) * 2 ** (levels + 1) <= target:
            levels += 1
        levels = int(self.lockstep.least(levels if own else self.layout.width + 1))
        if levels == 1:
            return 1
        facts = self.bounder.facts(parents)
        splittable = ((facts.lower < 0) & (facts.upper > 0) & (parents.sign == 0)).sum(1)
        # leaves among the parents are no reason to go slowly
        most = int(torch.where(splittable > 0, splittable, levels).amin())
        return max(1, int(self.lockstep.least(min(levels, most) if own else levels)))

    def expand(self, parents: Domains, place: Tensor, levels: int, ids: Numbering) -> Expanded[Domains]:
        """All children of some parents."""
        columns, ready, coef = self._choose(parents, levels)
        children = split(parents, columns, ids.first, ids.block, ids.step)
        empty = torch.zeros_like(children.lower, dtype=torch.bool)
        if self.clipper is not None:
            children, empty = self.clipper.clip(children, None if coef is None else coef.repeat(2**levels, 1))
        children = self.bounder.bound(children, self.seconds_left)
        # a parent without a neuron to split has no children: it is a leaf, and what stands in their place is dropped
        real = ready.repeat(2**levels)
        closed = (self.bounder.proven(children, children.lower) | empty) & real
        return Expanded(parents, place, ready, children, real, closed, empty)

    def sorted_out(self, parts: Sequence[Expanded[Domains]]) -> Share[Domains]:
        """What is left of all parts; the device is waited for once."""
        share = Share[Domains](sum(len(part.parents) for part in parts))
        if not parts:
            return share
        still = [part.real & ~part.closed for part in parts]
        known = torch.stack([_counted(part, open_) for part, open_ in zip(parts, still, strict=True)]).tolist()
        counts = [[int(number) for number in row[:3]] for row in known]
        share.worst = least(row[3] for row in known)
        left = []
        for part, which, (_, visited, open_) in zip(parts, still, counts, strict=True):
            share.visited += visited
            if self.settings.record_ledger:
                _note(share.ledger, part)
            if open_:
                whole = open_ == len(part.children)
                left.append(part.children if whole else part.children.pick(which.nonzero().squeeze(-1)))
        share.left = joined(left)
        # last of all: this may take long, and time may end within it
        at_leaves = [part for part, (leaves, *_) in zip(parts, counts, strict=True) if leaves]
        for part in at_leaves:
            index = (~part.ready).nonzero().squeeze(-1)
            self.close_leaves(part.parents.pick(index), part.place[index].tolist(), share)
        return share

    def close_leaves(self, leaves: Domains, places: Sequence[int], share: Share[Domains]) -> None:
        """Decide domains without a splittable neuron by LP; what it cannot decide stays undecided for good.

        The first counterexample by place ends it. Raises OutOfTime.
        """
        if not self.layout.complete:
            share.undecided += len(leaves)
            return
        if not len(leaves):
            return
        self.told(f"linear programs of {len(leaves)} leaves")
        # before any look at the clock: ranks that share weights fetch them for it together
        solver = self.leaf_solver()
        for position, place in enumerate(places):
            if share.candidate is not None and share.place <= place:
                continue
            if self.seconds_left() <= 0:
                raise OutOfTime
            leaf = leaves.pick(torch.tensor([position], device=leaves.id.device))
            found = solver.solve(leaf)
            if found.closed:
                if self.settings.record_ledger:
                    share.ledger.close(leaf, "lp")
                continue
            if found.candidate is not None and self.on_candidate is not None and self.on_candidate(found.candidate):
                share.candidate, share.place = found.candidate, place
            else:
                share.undecided += 1

    def _choose(self, parents: Domains, levels: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Columns to split ``[D, levels]``, which parents have one ``[D]``, and the coefficients where clipping asks.

        Tile by tile: scores take a dozen tensors as wide as all columns.
        """
        turns = self.lockstep.tiles(parents, CHOOSE_TILE)
        parts = [part for part, mine in ((self._choose_tile(tile, levels), mine) for tile, mine in turns) if mine]
        coef = None if self.clipper is None else torch.cat([part[2] for part in parts])
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), coef

    def _choose_tile(self, parents: Domains, levels: int) -> tuple[Tensor, Tensor, Tensor]:
        facts = self.bounder.facts(parents)
        known = BranchInput(facts.coef, facts.lower, facts.upper, parents.sign, parents.id, parents.depth)

        def tried(parent: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
            return try_children(self.bounder, parents, parent, column, self.height, self.lockstep)

        return self.brancher.choose(known, levels, tried), known.splittable().any(1), facts.coef


def joined(parts: Sequence[Domains]) -> Domains | None:
    """All domains, part after part; None if there are no parts."""
    if len(parts) <= 1:
        return parts[0] if parts else None
    return parts[0].rebuild(tuple(torch.cat(tensors) for tensors in zip(*(p.tensors() for p in parts), strict=True)))


def _counted(part: Expanded[Domains], open_: Tensor) -> Tensor:
    """Leaves among the parents, children, open ones among these and the least bound of those: ``[4]`` float64."""
    bound = torch.where(open_, part.children.lower, torch.inf).amin()
    return torch.stack([one.to(torch.float64) for one in ((~part.ready).sum(), part.real.sum(), open_.sum(), bound)])


def _note(ledger: Ledger, part: Expanded[Domains]) -> None:
    for chosen, reason in ((part.closed & ~part.empty, "bound"), (part.closed & part.empty, "empty")):
        ledger.close(part.children.pick(chosen.nonzero().squeeze(-1)), reason)
