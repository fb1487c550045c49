"""The one object that a search asks which neurons to split (methods: interface 7.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from auto_LiRPA.errors import ConfigError
from complete_verifier.branching.columns import Columns
from complete_verifier.branching.lookahead import TryChildren, candidates_of, look_ahead
from complete_verifier.branching.picking import best_columns, open_keys, random_keys, without
from complete_verifier.branching.scores import BACKUP_FLOOR, Scores, flat_scores, intercept_scores

METHODS = ("babsr", "fsb", "kfsb", "kfsb-intercept-only", "intercept", "random")

# BaBSR takes a main score only above this.
BABSR_FLOOR = 1e-3
# Of so many consecutive depths, the last one does not fall back on the first layer's backup scores.
BACKUP_PERIOD = 3


@dataclass(frozen=True, slots=True)
class BranchInput:
    """What is known about D domains of U columns when they are split.

    ``coef`` ``[D, U]``: coefficient on each ReLU's output in the row that bounds the domain; ``lower``, ``upper``
    ``[D, U]``: bounds of the pre-activations (strides of 0 are fine, splits need not be counted); ``sign`` ``[D, U]``;
    ``id``, ``depth`` ``[D]``.
    """

    coef: Tensor
    lower: Tensor
    upper: Tensor
    sign: Tensor
    id: Tensor
    depth: Tensor

    def splittable(self) -> Tensor:
        """Which neurons can be split: ``[D, U]``. A domain without any is a leaf."""
        return (self.lower < 0) & (self.upper > 0) & (self.sign == 0)


class Brancher(Protocol):
    """Chooses neurons. Shapes depend on D alone, and nothing waits for the device."""

    def choose(self, known: BranchInput, levels: int, try_children: TryChildren) -> Tensor:
        """Columns ``[D, levels]`` of splittable neurons, no neuron twice in a row; -1 where a domain has too few.

        Args:
            try_children: ``(parent [N], column [N]) -> (plus [N], minus [N])``: margins of both children after one
                bounding pass. Called at most once, with N the same for every call of equal D and levels.
        """
        ...


def make_brancher(
    method: str, columns: Columns, *, candidates: int = 3, reduceop: str = "min", seed: int = 0
) -> Brancher:
    """The brancher of a method. There has to be a neuron to split: ``columns.width`` is above 0.

    Args:
        candidates: how many neurons look-ahead methods try by each kind of score.
        reduceop: min, max, mean or auto (= min), for the two children of a split, in scores and in look-ahead.
        seed: of `random` choices, which depend on it and on a domain's id and depth only.

    Raises:
        ConfigError: an unknown method.
    """
    match method:
        case "babsr":
            return Babsr(columns, reduceop, seed)
        case "fsb":
            return Fsb(columns, candidates, reduceop, seed)
        case "kfsb" | "kfsb-intercept-only":
            return Kfsb(columns, candidates, reduceop, method == "kfsb")
        case "intercept":
            return Intercept()
        case "random":
            return Random(seed)
    raise ConfigError(f"bab.branching.method = {method}: expected one of {', '.join(METHODS)}")


@dataclass(frozen=True, slots=True)
class Babsr:
    """BaBSR (Bunel et al. 2020) with upstream's backup rules.

    The best main score decides, unless it is at most 0.001 or lies in the first layer (of several). Then the best
    backup score below -1e-4 of the last layer that has one decides, else a random neuron. Upstream falls back on the
    first layer at most twice in a row, counted over the domains of a batch; here every third depth of a path passes
    it over, so that a domain's choice does not depend on its neighbours.
    """

    columns: Columns
    reduceop: str
    seed: int

    def choose(self, known: BranchInput, levels: int, try_children: TryChildren) -> Tensor:
        """Several levels: the same rules again without the neurons that are taken."""
        scores = _flat(self.columns, known, self.reduceop)
        return self.pick(scores, known, scores.splittable, levels)

    def pick(self, scores: Scores, known: BranchInput, allowed: Tensor, levels: int) -> Tensor:
        """The choice among the ``allowed`` neurons ``[D, U]``."""
        random = random_keys(self.seed, known.id, known.depth, scores.main.shape[1])
        found: list[Tensor] = []
        for level in range(levels):
            found.append(self._one(scores, random, known.depth + level, allowed))
            allowed = without(allowed, found[-1])
        return torch.cat(found, 1)

    def _one(self, scores: Scores, random: Tensor, depth: Tensor, allowed: Tensor) -> Tensor:
        """One neuron of each domain ``[D, 1]``."""
        layer, several = self.columns.layer, len(self.columns.spans) > 1
        main = open_keys(scores.main, allowed)
        at_main = best_columns(main, 1)
        good = main.gather(1, at_main.clamp_min(0)) > BABSR_FLOOR
        backup = open_keys(-scores.backup, allowed & (scores.backup < BACKUP_FLOOR))
        if several:
            good = good & (layer[at_main.clamp_min(0)] > 0)
            tired = depth.unsqueeze(1) % BACKUP_PERIOD == BACKUP_PERIOD - 1
            backup = torch.where(tired & (layer == 0), -torch.inf, backup)
            last = torch.where(backup > -torch.inf, layer, -1).amax(1, keepdim=True)
            backup = torch.where(layer == last, backup, -torch.inf)
        at_backup = best_columns(backup, 1)
        at_random = best_columns(open_keys(random, allowed), 1)
        fallback = torch.where(at_backup >= 0, at_backup, at_random)
        return torch.where(good & (at_main >= 0), at_main, fallback)


@dataclass(frozen=True, slots=True)
class Kfsb:
    """kFSB: the k best neurons of all layers by main score and the k best others by backup score are tried.

    Without main scores it is `kfsb-intercept-only`: the backup score is the triangle's height times the negative
    part of the coefficient.
    """

    columns: Columns
    candidates: int
    reduceop: str
    by_main: bool

    def choose(self, known: BranchInput, levels: int, try_children: TryChildren) -> Tensor:
        """k = max(candidates, levels)."""
        scores = _flat(self.columns, known, self.reduceop)
        count = max(1, min(max(self.candidates, levels), self.columns.width))
        columns, telling = candidates_of(scores, count, self.by_main)
        return look_ahead(columns, telling, levels, self.reduceop, try_children)


@dataclass(frozen=True, slots=True)
class Fsb:
    """FSB: as kFSB, but with k candidates of every layer; the first of several layers is left out.

    Domains that have nothing to split in the other layers are chosen for by BaBSR.
    """

    columns: Columns
    candidates: int
    reduceop: str
    seed: int

    def choose(self, known: BranchInput, levels: int, try_children: TryChildren) -> Tensor:
        """k = max(candidates, levels), a layer's width at most."""
        scores = _flat(self.columns, known, self.reduceop)
        spans = self.columns.spans
        found, telling = [], []
        for start, stop in spans[1:] if len(spans) > 1 else spans:
            part = Scores(*(t[:, start:stop] for t in (scores.main, scores.backup, scores.splittable)))
            count = min(max(self.candidates, levels), stop - start)
            columns, says = candidates_of(part, count)
            found.append(torch.where(columns < 0, -1, columns + start))
            telling.append(says)
        babsr = Babsr(self.columns, self.reduceop, self.seed)
        chosen = look_ahead(torch.cat(found, 1), torch.cat(telling, 1), levels, self.reduceop, try_children)
        more = babsr.pick(scores, known, without(scores.splittable, chosen), levels)
        both = torch.cat([chosen, more], 1)
        return both.gather(1, (both < 0).to(torch.int8).argsort(dim=1, stable=True))[:, :levels]


@dataclass(frozen=True, slots=True)
class Intercept:
    """The largest triangle, weighted by the coefficient's magnitude."""

    def choose(self, known: BranchInput, levels: int, try_children: TryChildren) -> Tensor:
        """Nothing is tried."""
        scores = intercept_scores(known.coef, known.lower, known.upper)
        return best_columns(open_keys(scores, known.splittable()), levels)


@dataclass(frozen=True, slots=True)
class Random:
    """Any splittable neuron, the same in every run with the same seed."""

    seed: int

    def choose(self, known: BranchInput, levels: int, try_children: TryChildren) -> Tensor:
        """Nothing is tried."""
        splittable = known.splittable()
        keys = random_keys(self.seed, known.id, known.depth, splittable.shape[1])
        return best_columns(open_keys(keys, splittable), levels)


def _flat(columns: Columns, known: BranchInput, reduceop: str) -> Scores:
    return flat_scores(columns, known.coef, known.lower, known.upper, known.sign, reduceop)
