"""The branch-and-bound loop on input boxes: take up, cut, bound, close, clip, choose, store."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.errors import ConfigError, OutOfTime
from auto_LiRPA.parallel.numerics import full_precision
from auto_LiRPA.values import Box
from complete_verifier.bab.oom import is_out_of_memory
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.input_bab.agreement import Report, Status
from complete_verifier.input_bab.bounding import Bounder
from complete_verifier.input_bab.domains import Domains, concatenate
from complete_verifier.input_bab.groups import MOST_CLAUSES, make_groups
from complete_verifier.input_bab.roots import root_domains
from complete_verifier.input_bab.settings import InputBabProgress, InputBabResult, InputBabSettings, Leaf
from complete_verifier.input_bab.split import cut
from complete_verifier.input_bab.store import DomainStore
from complete_verifier.input_bab.team import Team, own_passes, prepared
from complete_verifier.input_bab.tile_work import Candidate, TileDone, TileWork
from complete_verifier.problem import Problem
from complete_verifier.together import first_rank

# Shares of the time left, and seconds, that one round may be planned to take.
_ROUND_SHARE = 0.1
_LONGEST_ROUND_S = 2.0
# A round of so few boxes is all overhead: it is not cut down for time. (Passes look at the clock tile by tile.)
_LEAST_BATCH = 256
# Candidates offered in a round and in all, and the share of the search's time that attacks may take.
_OFFERED_PER_ROUND, _OFFERED = 2, 40
_ATTACK_SHARE = 0.1
_FIRST_BOXES = 32  # the worst of the first round are attacked with more effort, if that is asked for
# Tiles of a synchronous round: so many of a full one at least, each of so many boxes at least.
_SYNCHRONOUS_TILES, _LEAST_TILE = 8, 32
TIME_LIMIT = "time limit"

OnProgress = Callable[[InputBabProgress], None]
OnCandidate = Callable[[np.ndarray], bool]  # an input [*in] that may violate; True: confirmed, the search can stop
# boxes [D, *in] and their clauses [D] of the problem; first: the attack on the first boxes. True: confirmed
OnBoxes = Callable[[Tensor, Tensor, Tensor, bool], bool]


@dataclass(slots=True)
class _State:
    """Counters of one search: the same on all ranks, but for ``next_id``, ``memory_limit`` and ``leaves``."""

    started: float
    visited: int = 0
    rounds: int = 0
    next_id: int = 0
    stuck: int = 0  # boxes that are too small to cut
    offered: int = 0
    attack_seconds: float = 0.0
    attacked_first: bool = False
    elapsed: float = 0.0  # up to the last round's end
    left: float = math.inf  # then, until the deadline
    batch: int = 0  # of the last round, and its seconds
    seconds: float = 0.0
    memory_limit: int | None = None  # boxes a round may take up since memory ran out
    leaves: list[Leaf] = field(default_factory=list)


@dataclass(slots=True)
class _Part:
    """What this rank's part of a round came to."""

    taken: int
    next_id: int
    owed: int = 0
    done: list[TileDone] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    confirmed: bool = False
    late: bool = False
    full: bool = False
    seconds: float = 0.0


def search_boxes(
    problem: Problem,
    start: IncompleteResult,
    settings: InputBabSettings,
    on_progress: OnProgress | None = None,
    on_candidate: OnCandidate | None = None,
    on_boxes: OnBoxes | None = None,
) -> InputBabResult:
    """Try to refute every clause that the incomplete stage left open, on ever smaller boxes.

    All ranks of the problem's context call it together. Where ranks have boxes of their own (`Team.together` is False),
    ``on_candidate`` and ``on_boxes`` are called by each rank with its own; else ``on_candidate`` is called by the first
    rank alone, and ``on_boxes`` by all with the same boxes.

    Args:
        on_candidate: called with an input that violates a clause by the graph's arithmetic.
        on_boxes: called with the worst boxes, to attack them.

    Returns:
        ``closed`` only if boxes on which the clauses are refuted cover everything. Any limit leaves it False. The same
        on all ranks, but for ``leaves``.
    """
    if bool(start.proven.all()):
        return InputBabResult(True, "nothing is open", 0, 0, math.inf, 0.0)
    with torch.no_grad(), full_precision():
        return _Search(problem, start, settings, on_progress, on_candidate, on_boxes).run()


class _Search:
    """One search: what it owns and the steps of a round."""

    def __init__(
        self,
        problem: Problem,
        start: IncompleteResult,
        settings: InputBabSettings,
        on_progress: OnProgress | None,
        on_candidate: OnCandidate | None,
        on_boxes: OnBoxes | None,
    ) -> None:
        self.problem = prepared(problem)
        self.on_progress, self.on_candidate, self.on_boxes = on_progress, on_candidate, on_boxes
        region = problem.region
        assert isinstance(region, Box)
        self.box = region.lower.flatten(1), region.upper.flatten(1)
        if int((self.box[1] > self.box[0]).any(0).sum()) <= 1:  # nothing to choose
            settings = replace(settings, score=replace(settings.score, method="naive"))
        self.settings = settings
        complete = settings.clip.enabled and settings.clip.complete
        self.groups = make_groups(problem.clauses, ~start.proven, 1 if complete else MOST_CLAUSES)
        context = self.problem.context
        bounding = replace(self.problem, context=own_passes(context))
        self.bounder = Bounder(bounding, self.groups, settings)
        self.roots = root_domains(self.bounder, start, self.box)
        self.team = Team(context, settings.synchronous, self.roots)
        self.hint = self._hint(self.box[0])
        self.work = TileWork(self.bounder, settings, self.hint, 0 if on_candidate is None else _OFFERED_PER_ROUND)
        self.state = _State(time.monotonic(), next_id=len(self.roots))

    def run(self) -> InputBabResult:
        """Rounds until nothing is open or a limit is reached."""
        store = DomainStore(self.roots, self.settings.traversal)
        store.add(self.team.mine(self.roots))
        lengths = self.team.lengths(store)
        unbounded = not self.settings.reorder  # the roots have no order of dimensions yet
        self.state.left = self.team.world.smallest(self.problem.clock.left())
        while sum(lengths):
            reason = self._limit(sum(lengths))
            if reason:
                return self._result(False, reason, store)
            lengths = self.team.level(store, lengths)
            own, boxes = self.team.take(store, self._batch(sum(lengths) if self.settings.synchronous else len(store)))
            part = self._attempt(own, boxes, unbounded)
            status = self.team.status(self._told(store, part))
            status.check(lengths)
            lengths = self._settled(store, own, part, status)
            if status.late:
                return self._result(False, TIME_LIMIT, store)
            if not status.counts:  # out of memory: the same again with a smaller batch
                continue
            unbounded = False
            if status.confirmed or self._offered(part, status) or self._attacked(store, sum(lengths)):
                return self._result(False, "counterexample", store)
            self._report(store, sum(lengths))
        if self.state.stuck:
            return self._result(False, f"{self.state.stuck} boxes too small to cut", store)
        return self._result(True, "all domains closed", store)

    # -- one round -------------------------------------------------------------------------------------------------
    def _attempt(self, own: Domains, boxes: Domains, roots: bool) -> _Part:
        """This rank's part of a round; neither time nor memory that ends is an exception: all ranks are told first."""
        part = _Part(len(own), self.state.next_id)
        began = time.monotonic()
        try:
            if len(boxes):
                self._round(boxes, roots, part)
        except OutOfTime:
            part.late = True
        except (MemoryError, RuntimeError) as error:
            # ranks that share weights wait within the round: it cannot be undone
            if not is_out_of_memory(error) or self.bounder.problem.context.weights.size > 1:
                raise
            part.full = True
        part.seconds = time.monotonic() - began
        return part

    def _round(self, boxes: Domains, roots: bool, part: _Part) -> None:
        if not (roots or self.settings.reorder):
            boxes = self._cut(boxes)
            part.next_id += len(boxes)
        tiles = torch.arange(len(boxes), device=boxes.id.device).split(self._height())
        shared = self.settings.synchronous
        # another rank begins each round, so that queues grow alike
        first = (self.team.index - self.state.rounds) % self.team.count if shared else 0
        try_cuts = self.state.rounds < self.settings.score.bf_rounds
        for index in tiles[first :: self.team.count] if shared else tiles:
            part.done.append(self.work.run(boxes if len(tiles) == 1 else boxes.pick(index), try_cuts))
        part.owed = len(boxes) if not shared or self.team.index == 0 else 0
        part.candidates = sorted((c for done in part.done for c in done.candidates), key=lambda c: c.worst)
        if not self.team.together:
            part.confirmed = self._confirmed(part.candidates[:_OFFERED_PER_ROUND])

    def _height(self) -> int:
        """Boxes bounded together: where ranks share a round, from the settings alone, so few that all have some."""
        height = self.bounder.tile_height
        if self.settings.synchronous:
            return min(height, max(_LEAST_TILE, 2 * self.settings.batch_size // _SYNCHRONOUS_TILES))
        return height

    def _cut(self, parents: Domains) -> Domains:
        """Children, with ids that no other rank gives."""
        levels = self._levels(parents)
        children = cut(parents, levels, self.settings.partitions, self.hint, self.state.next_id)
        if self.settings.synchronous:  # all ranks make all of them
            return children
        return replace(children, id=children.id * self.team.count + self.team.index)

    def _told(self, store: DomainStore, part: _Part) -> Report:
        """This rank's part in numbers."""
        usable = not (part.late or part.full)
        found = part.done if usable else []
        worst = [float(done.open.worst().amin()) for done in found if len(done.open)]
        return Report(
            open=len(store),
            taken=part.taken,
            left=sum(len(done.open) for done in found),
            owed=part.owed,
            visited=sum(done.visited for done in found),
            stuck=sum(done.stuck for done in found),
            candidates=len(part.candidates) if usable else 0,
            worst=min([store.worst(), *worst]),
            seconds=part.seconds,
            elapsed=time.monotonic() - self.state.started,
            attack_seconds=self.state.attack_seconds,
            time_left=self.problem.clock.left(),
            confirmed=part.confirmed,
            late=part.late,
            full=part.full,
        )

    def _settled(self, store: DomainStore, own: Domains, part: _Part, status: Status) -> tuple[int, ...]:
        """Take the round in, or undo this rank's part of it; the lengths of all queues then."""
        state = self.state
        state.elapsed, state.left = status.elapsed, status.time_left
        if status.hopeless or (status.full_somewhere and self.settings.synchronous):
            raise MemoryError("a round of boxes does not fit into memory")
        if status.late or status.full:
            store.add(own)
            if status.full:
                state.memory_limit = max(1, len(own) // 2)
            left = None
        else:
            state.next_id = part.next_id
            state.leaves += [leaf for done in part.done for leaf in done.leaves]
            left = concatenate([done.open for done in part.done] or [self.roots.pick(self.roots.id[:0])])
        state.visited += status.visited
        state.stuck += status.stuck
        state.batch, state.seconds = status.taken, status.seconds
        state.rounds += status.counts
        if left is None or not self.settings.reorder:
            if left is not None and len(left):
                store.add(left)
            return self.team.lengths(store) if self.settings.reorder and not status.late else status.lengths
        return self._cut_at_the_end(store, left)

    def _cut_at_the_end(self, store: DomainStore, left: Domains) -> tuple[int, ...]:
        """What `reorder` does last: the open boxes are cut, and their children stored."""
        if self.settings.synchronous:
            left = self.team.all_of(left)
        if len(left):
            children = self._cut(left)
            self.state.next_id += len(children)
            store.add(self.team.mine(children) if self.settings.synchronous else children)
        return self.team.lengths(store)

    # -- counterexamples -------------------------------------------------------------------------------------------
    def _offered(self, part: _Part, status: Status) -> bool:
        """Offer the deepest points of all ranks that violate a clause, where ranks decide together."""
        if not self.team.together or status.candidates == 0:
            return False
        mine = part.candidates[:_OFFERED_PER_ROUND]
        every = [c for found in self.team.queues.objects(mine) for c in found]
        # the same order for every number of ranks: ties by the numbers themselves
        every.sort(key=lambda c: (c.worst, c.x.tobytes()))
        return self._confirmed(every[:_OFFERED_PER_ROUND])

    def _confirmed(self, candidates: Sequence[Candidate]) -> bool:
        for candidate in candidates:
            if self.on_candidate is None or self.state.offered >= _OFFERED:
                return False
            self.state.offered += 1
            if self._accepts(candidate.x):
                return True
        return False

    def _accepts(self, x: np.ndarray) -> bool:
        assert self.on_candidate is not None
        if not self.team.together:
            return self.on_candidate(x)
        on_candidate = self.on_candidate
        return first_rank(self.team.world, lambda: on_candidate(x))

    def _attacked(self, store: DomainStore, total: int) -> bool:
        """Attack the worst boxes and the newest one, as often as the share of time allows; True: it is over."""
        if self.on_boxes is None or total == 0:
            return False
        check, state = self.settings.check, self.state
        first = self.settings.first_attack and not state.attacked_first
        due = check.enabled and state.visited >= check.from_visited and check.boxes > 0
        if self.settings.synchronous:  # by rounds: the first, second, fourth, ...
            spent = state.rounds & (state.rounds - 1) != 0
        else:
            spent = state.attack_seconds > _ATTACK_SHARE * state.elapsed
        if not first and (not due or spent):
            return False
        began = time.monotonic()
        confirmed = self._attack(store, max(check.boxes, _FIRST_BOXES) if first else check.boxes, total, first)
        state.attacked_first = True
        mine = (confirmed, time.monotonic() - began, -self.problem.clock.left())
        rows = self.team.world.numbers(mine)
        state.attack_seconds += max(row[1] for row in rows)
        state.left = -max(row[2] for row in rows)
        return any(row[0] > 0 for row in rows)

    def _attack(self, store: DomainStore, count: int, total: int, first: bool) -> bool:
        team = self.team
        if not team.synchronous and len(store) == 0:
            return False
        worst = team.look(store, min(count, total))
        newest = store.newest() if len(store) else worst.pick(worst.id[:0])
        if team.synchronous:
            newest = team.all_of(newest)
            newest = newest.pick(newest.id.argmax().unsqueeze(0))
        boxes = concatenate([worst, newest])
        domain, position = boxes.open.nonzero(as_tuple=True)
        clause = self.groups.clause[boxes.group][domain, position]
        region = self.bounder.region(boxes.pick(domain))
        assert self.on_boxes is not None
        return self.on_boxes(region.lower, region.upper, clause, first)

    # -- sizes and ends --------------------------------------------------------------------------------------------
    def _hint(self, like: Tensor) -> Tensor | None:
        hint = self.settings.hint
        if not hint:
            return None
        if len(hint) not in (1, like.shape[1]):
            raise ConfigError(
                f"config: bab.branching.input_split.split_hint: {len(hint)} values for {like.shape[1]} inputs: give one"
                " for all of them, or one for each"
            )
        values = torch.tensor(hint, dtype=like.dtype, device=like.device)
        return values.expand(like.shape[1]) if len(values) == 1 else values

    def _levels(self, parents: Domains) -> int:
        """Dimensions cut at once: as many as fill the least batch, but no more than some parent has."""
        target = min(self.settings.min_batch_ratio, 1.0) * self.settings.batch_size
        levels, parts = 1, self.settings.partitions
        while len(parents) * parts ** (levels + 1) <= target:
            levels += 1
        return max(1, min(levels, int((parents.order >= 0).sum(1).amax())))

    def _batch(self, open_domains: int) -> int:
        """Boxes of the next round: the batch size, cut down so that a round fits the time left."""
        batch = self.settings.batch_size * (2 if self.settings.reorder else 1)
        if self.settings.synchronous:
            return min(batch, open_domains)
        if self.state.memory_limit is not None:
            batch = min(batch, self.state.memory_limit)
        if self.state.batch:
            planned = min(_ROUND_SHARE * max(self.state.left, 0.1), _LONGEST_ROUND_S)
            growth = min(max(planned / max(self.state.seconds, 1e-6), 0.25), 4.0)
            batch = min(batch, max(_LEAST_BATCH, int(self.state.batch * growth)))
        return min(batch, open_domains)

    def _limit(self, open_domains: int) -> str:
        """Why the search has to stop now; empty if it may go on."""
        if self.state.left <= 0:
            return TIME_LIMIT
        if 0 <= self.settings.max_iterations <= self.state.rounds:
            return f"round limit {self.settings.max_iterations}"
        if open_domains > self.settings.max_domains:
            return f"domain limit {self.settings.max_domains:.0f}"
        return ""

    def _report(self, store: DomainStore, total: int) -> None:
        worst = self.team.queues.smallest(store.worst())
        volume = self._closed_volume(store) if self.settings.show_volume else None
        if self.on_progress is not None:
            state = self.state
            seconds = time.monotonic() - state.started
            self.on_progress(InputBabProgress(state.rounds, total, state.visited, worst, seconds, volume))

    def _closed_volume(self, store: DomainStore) -> float:
        """Share of all groups' boxes that is not open any more (dimensions of width 0 do not count)."""
        opened = store.look(len(store))
        widths = (self.box[1] - self.box[0]).double()[self.groups.region]
        mine = widths[opened.group]
        share = torch.where(mine > 0, (opened.upper - opened.lower).double() / mine.clamp_min(1e-300), 1.0).prod(1)
        rows = self.team.queues.numbers([math.fsum(share.tolist())])
        return 1.0 - math.fsum(row[0] for row in rows) / len(self.groups)

    def _result(self, closed: bool, reason: str, store: DomainStore) -> InputBabResult:
        state = self.state
        worst = self.team.queues.smallest(store.worst())
        seconds = self.team.world.largest(time.monotonic() - state.started)
        return InputBabResult(closed, reason, state.visited, state.rounds, worst, seconds, tuple(state.leaves))
