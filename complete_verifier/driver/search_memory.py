"""Memory of branch and bound on one rank: stored sub-problems, a round's copies of them, the tile that is bounded.

Counts alone, for plans. A round takes some parents, bounds two children of each, and stores what is open; it has its
most at one of a few moments, and which one depends on batch, tile and ranks. Measured: docs/parallel.md, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from auto_LiRPA.bounds.domains.engine import SIZES
from complete_verifier.bab.domains import cuts
from complete_verifier.bab.expansion import CHOOSE_TILE
from complete_verifier.bab.settings import BabSettings
from complete_verifier.bab.tiers.slabs import slots_held

# Of a slot, beside the payload: its place in the list of free ones, rank, id and margin with the room that keys have.
_KEY_BYTES = 40
# Numbers a column while neurons are scored: coefficients, boxes, and what the formulas of a score have in between;
# then, while candidates are tried, coefficients, boxes and both scores.
_SCORING, _SCORED = 9, 5
# Numbers a column of a pass operation by operation: boxes, lines, variables; of an optimisation also bests, moments,
# the gradient.
_EAGER, _LEARNING = 10, 15


@dataclass(frozen=True, slots=True)
class Growth:
    """What a search leaves open if no sub-problem is ever closed, and how many parents it takes on the way."""

    open: int
    parents: int

    @classmethod
    def of(cls, roots: int, settings: BabSettings, rounds: int) -> Growth:
        """So many rounds from so many roots: few domains are split over several levels at once, as `Expander` does."""
        batch = settings.batch_size
        target = min(settings.min_batch_ratio * batch, batch)
        found, parents = max(1, roots), 0
        for _ in range(rounds):
            taken, levels = min(batch, found), 1
            while taken * 2 ** (levels + 1) <= target:
                levels += 1
            found += taken * (2**levels - 1)
            parents += taken
        return cls(found, parents)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFacts:
    """Branch and bound on splits of neurons, as one rank does it; bytes.

    ``slot``: of a stored sub-problem; ``columns``: splittable neurons (``own``: of this rank, under tp); ``number``,
    ``variable``: of a number, and of an alpha or beta at rest. ``batch``: parents a round, of all ranks ``together``
    (the synchronous schedule) or of each, and so is ``open``: sub-problems at the end. ``tile``: those bounded
    together; ``row``: bytes of one of them, beside its columns; ``flow``: of what passes from layer to layer, ``walk``:
    with the coefficients that are kept; ``tried``: candidates of look-ahead for a parent. ``fused``: whether kernels
    work in buffers that stay, else plain operations; ``own_boxes``: whether sub-problems have boxes of their own.
    ``smaller``: of the network without the neurons that are off. ``small``: networks with weights up to this are whole
    on every rank for the search.
    """

    slot: int
    columns: int
    own: int
    number: int
    variable: int
    batch: int
    together: bool
    open: int
    tile: int
    row: int
    flow: int
    walk: int
    tried: int
    fused: bool
    own_boxes: bool
    smaller: int
    small: float
    iterations: int

    def parents(self, ranks: int) -> int:
        """Of a full round, on one of so many ranks that share sub-problems out."""
        return -(-self.batch // ranks) if self.together else self.batch

    def moved(self, ranks: int) -> int:
        """Bytes that ranks gather in a full round: where parents are chosen together, all of them and their keys."""
        return self.batch * (self.slot + 16 * ranks) if self.together and ranks > 1 else 0

    def moments(self, ranks: int, recorded: bool, workspace: int) -> Iterator[tuple[int, int]]:
        """What is stored and the transient beside it, at each moment that may be the one with the most.

        Args:
            recorded: whether passes are captured, so that all but the first make nothing.
            workspace: of the matrix library, for each stream.
        """
        mine = self.parents(ranks)
        job = self._job(mine)
        every = job if self.together else 2 * mine  # children whose results are joined
        shared = self.batch if self.together and ranks > 1 else 0  # all ranks' parents, on every rank
        held = shared + mine
        picked = mine if self.together and 2 * self.batch > self.tile else 0  # a job's own copy of its parents
        present = -(-self.open // ranks) if self.together else self.open
        standing = self._buffers(mine) + self.smaller + (workspace if recorded else 0)
        before = self.stored(present - mine)
        if shared:  # packed, padded, gathered, in order, unpacked
            yield before, standing + self.slot * 3 * (mine + shared)
        others = self.slot * (held + picked + 2 * mine - every)
        yield before, standing + others + self.choosing(every // 2, recorded)
        yield before, standing + others + self.slot * every + self.bounding(every, min(job, every), recorded)
        if self.together and 2 * mine > job:  # all jobs' children are joined
            yield before, standing + self.slot * (held + picked + 4 * mine)
        # children on their way into their slots: as fields, then as whole rows
        yield self.stored(present), standing + self.slot * (held + 4 * mine)
        if recorded:  # in an early round: the first pass of a tile runs on a stream of its own, what it changes is kept
            kept = _size(job) * (4 * self.number * self.own + self.walk) + self._loaded(job)
            early = min(present, job)
            yield self.stored(early), standing + workspace + self.slot * (job + job // 2) + kept

    def _job(self, mine: int) -> int:
        """Children that a rank bounds together at most."""
        return _tile(2 * mine, self.tile)

    def stored(self, count: int) -> int:
        """Memory that the store holds for so many: slabs, filled or not, and keys."""
        return slots_held(max(1, count)) * (self.slot + _KEY_BYTES)

    def _buffers(self, mine: int) -> int:
        """Of every size up to that of a tile: variables, moments, bests and signs of all rows."""
        if not self.fused:
            return 0
        job = self._job(mine)
        tried = self.tried * min(CHOOSE_TILE, job // 2 if self.together else mine)
        largest = _size(max(job, _tile(tried, self.tile)))
        boxes = 2 * self.number * self.own
        row = (4 * self.number + 1) * self.own + (boxes if self.own_boxes else 0) + self.row
        return sum(size * row + boxes for size in {*SIZES, largest} if size <= largest)

    def choosing(self, parents: int, recorded: bool) -> int:
        """Neurons of a tile of parents are scored, then candidates are tried."""
        parents = min(CHOOSE_TILE, max(1, parents))
        rows = min(self.tile, self.tried * parents)
        known = parents * self.columns * self.number
        facts = known + self._passing(min(self.tile, parents), _EAGER, self.walk)
        tile = _tile(rows, self.tile)
        once = 0 if recorded else self._passing(tile, _EAGER, self.flow)
        trying = known * _SCORED + rows * self.slot + self._loaded(tile) + once
        return max(facts, _SCORING * known, trying)

    def bounding(self, every: int, tile: int, recorded: bool) -> int:
        """The last tile's optimisation beside the results of all others, or all results on their way to rest."""
        began = tile * self.own * (1 + 3 * self.number) if self.fused else 0  # what came in, put into range
        last = self._loaded(tile) + max(began, 0 if recorded else self._passing(tile, _LEARNING, self.walk))
        resting = 0 if self.variable == self.number else every * self.columns * self.variable
        results = every * self.columns * (self.number + self.variable) + resting
        return max((every - tile) * self.columns * self.number + last, results)

    def _passing(self, rows: int, numbers: int, row: int) -> int:
        """What passes of a tile make: buffers are padded; plain operations have their variables and lines beside."""
        if self.fused:
            return _size(rows) * row
        return rows * (self.own * (numbers * self.number + 2) + row)

    def _loaded(self, rows: int) -> int:
        """Variables of a tile as numbers, where they rest as something smaller."""
        return 0 if self.variable == self.number else rows * self.own * self.number


def _tile(rows: int, height: int) -> int:
    """The largest tile of so many domains."""
    return max((stop - first for first, stop in cuts(rows, height)), default=1)


def _size(rows: int) -> int:
    """Rows of the buffers that hold so many."""
    return next((size for size in SIZES if size >= rows), rows)
