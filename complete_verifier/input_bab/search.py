"""The branch-and-bound loop on input boxes: take up, cut, bound, close, clip, choose, store."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.parallel.numerics import full_precision
from auto_LiRPA.values import Box
from complete_verifier.incomplete.result import IncompleteResult, known_gap
from complete_verifier.input_bab.bounding import Bounded, Bounder
from complete_verifier.input_bab.choice import scored, tried
from complete_verifier.input_bab.clip import clip
from complete_verifier.input_bab.domains import Domains
from complete_verifier.input_bab.groups import MOST_CLAUSES, make_groups
from complete_verifier.input_bab.probe import candidates
from complete_verifier.input_bab.settings import InputBabProgress, InputBabResult, InputBabSettings, Leaf
from complete_verifier.input_bab.split import cut
from complete_verifier.input_bab.store import DomainStore
from complete_verifier.problem import Problem

# Shares of the time left, and seconds, that one round may be planned to take.
_ROUND_SHARE = 0.1
_LONGEST_ROUND_S = 2.0
# A round of so few boxes is all overhead: it is not cut down for time. (Passes look at the clock tile by tile.)
_LEAST_BATCH = 256
# Dimensions that are ordered for cuts of several levels.
_MOST_LEVELS = 10
# Candidates offered in a round and in all, and the share of the search's time that attacks may take.
_OFFERED_PER_ROUND, _OFFERED = 2, 40
_ATTACK_SHARE = 0.1
_FIRST_BOXES = 32  # the worst of the first round are attacked with more effort, if that is asked for
TIME_LIMIT = "time limit"

OnProgress = Callable[[InputBabProgress], None]
OnCandidate = Callable[[np.ndarray], bool]  # an input [*in] that may violate; True: confirmed, the search can stop
# boxes [D, *in] and their clauses [D] of the problem; first: the attack on the first boxes. True: confirmed
OnBoxes = Callable[[Tensor, Tensor, Tensor, bool], bool]


@dataclass(slots=True)
class _State:
    """Counters of one search."""

    started: float
    visited: int = 0
    rounds: int = 0
    next_id: int = 0
    stuck: int = 0  # boxes that are too small to cut
    offered: int = 0
    attack_seconds: float = 0.0
    attacked_first: bool = False
    batch: int = 0  # of the last round, and its seconds
    seconds: float = 0.0
    memory_limit: int | None = None  # boxes a round may take up since memory ran out
    leaves: list[Leaf] = field(default_factory=list)


class _Confirmed(Exception):
    """A counterexample was confirmed."""


def search_boxes(
    problem: Problem,
    start: IncompleteResult,
    settings: InputBabSettings,
    on_progress: OnProgress | None = None,
    on_candidate: OnCandidate | None = None,
    on_boxes: OnBoxes | None = None,
) -> InputBabResult:
    """Try to refute every clause that the incomplete stage left open, on ever smaller boxes.

    Args:
        on_candidate: called with an input that violates a clause by the graph's arithmetic.
        on_boxes: called with the worst boxes, to attack them.

    Returns:
        ``closed`` only if boxes on which the clauses are refuted cover everything. Any limit leaves it False.
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
        self.problem, self.start = problem, start
        self.on_progress, self.on_candidate, self.on_boxes = on_progress, on_candidate, on_boxes
        region = problem.region
        assert isinstance(region, Box)
        low, high = region.lower.flatten(1), region.upper.flatten(1)
        if int((high > low).any(0).sum()) <= 1:  # nothing to choose
            settings = replace(settings, score=replace(settings.score, method="naive"))
        self.settings = settings
        complete = settings.clip.enabled and settings.clip.complete
        self.groups = make_groups(problem.clauses, ~start.proven, 1 if complete else MOST_CLAUSES)
        self.bounder = Bounder(problem, self.groups, settings)
        self.hint = self._hint(low)
        self.box = (low, high)
        self.state = _State(time.monotonic())

    def run(self) -> InputBabResult:
        """Rounds until nothing is open or a limit is reached."""
        roots = self._roots()
        self.state.next_id = len(roots)
        store = DomainStore(roots, self.settings.traversal)
        store.add(roots)
        unbounded = not self.settings.reorder  # the roots have no order of dimensions yet
        reason = ""
        while len(store):
            reason = self._limit(len(store))
            if reason:
                break
            taken = store.take(self._batch(len(store)))
            try:
                survivors = self._guarded_round(taken, unbounded)
                if survivors is None:  # out of memory: the same again with a smaller batch
                    store.add(taken)
                    continue
                unbounded = False
                if len(survivors):
                    store.add(survivors)
                self.state.rounds += 1
                self._attack(store)
            except OutOfTime:
                store.add(taken)
                reason = TIME_LIMIT
                break
            except _Confirmed:
                return self._result(False, "counterexample", store)
            self._report(store)
        if reason or len(store):
            return self._result(False, reason, store)
        if self.state.stuck:
            return self._result(False, f"{self.state.stuck} boxes too small to cut", store)
        return self._result(True, "all domains closed", store)

    # -- one round -------------------------------------------------------------------------------------------------
    def _guarded_round(self, taken: Domains, roots: bool) -> Domains | None:
        """The domains that stay open. None: there was not enough memory, and nothing has changed but the batch."""
        before = replace(self.state, leaves=list(self.state.leaves)) if self.settings.record_leaves else None
        visited, stuck, next_id = self.state.visited, self.state.stuck, self.state.next_id
        try:
            return self._round(taken, roots)
        except (torch.OutOfMemoryError, MemoryError):
            pass
        except RuntimeError as error:
            if "DefaultCPUAllocator" not in str(error):  # torch's allocator for the CPU has no exception of its own
                raise
        if len(taken) == 1:
            raise MemoryError("one box does not fit into memory")
        self.state.visited, self.state.stuck, self.state.next_id = visited, stuck, next_id
        if before is not None:
            self.state.leaves = before.leaves
        self.state.memory_limit = max(1, len(taken) // 2)
        return None

    def _round(self, taken: Domains, roots: bool) -> Domains:
        began = time.monotonic()
        if self.settings.reorder:
            survivors = self._bound(taken)
            found = self._cut(survivors) if len(survivors) else survivors
        else:
            found = self._bound(taken if roots else self._cut(taken))
        self.state.batch, self.state.seconds = len(taken), time.monotonic() - began
        return found

    def _cut(self, parents: Domains) -> Domains:
        levels = self._levels(parents)
        children = cut(parents, levels, self.settings.partitions, self.hint, self.state.next_id)
        self.state.next_id += len(children)
        return children

    def _bound(self, domains: Domains) -> Domains:
        """Bounds, proofs, clipping, candidates and the next cuts; returns what stays open."""
        bounded = self.bounder.bound(domains)
        self.state.visited += len(domains)
        refuted = self.bounder.refuted(domains, bounded.gap, bounded.margin)
        domains = self._close(replace(domains, margin=bounded.margin, phase=bounded.phase), refuted)
        if self.settings.clip.enabled:
            domains = self._clipped(domains, bounded)
        keep = domains.open.any(1).nonzero().squeeze(-1)
        if len(keep) == 0:
            return domains.pick(keep)
        domains = replace(domains, half=self.bounder.next_half(domains, bounded)).pick(keep)
        bounded = Bounded(*(getattr(bounded, name)[keep] for name in Bounded.__slots__))
        self._offer(domains, bounded)
        order = self._choose(domains, bounded)
        cuttable = (order >= 0).any(1)
        self.state.stuck += int((~cuttable).sum())
        return replace(domains, order=order).pick(cuttable.nonzero().squeeze(-1))

    def _clipped(self, domains: Domains, bounded: Bounded) -> Domains:
        half = self.bounder.half_of_rows(domains, bounded)
        clipped, empty = clip(domains, half, self.settings.clip.iterations)
        # the leaf is the box before it was clipped: that is where the clause is refuted
        closed = self._close(domains, empty & self.groups.real[domains.group].any(-1))
        return replace(closed, lower=clipped.lower, upper=clipped.upper)

    def _close(self, domains: Domains, refuted: Tensor) -> Domains:
        """Refuted clauses are no longer open."""
        if self.settings.record_leaves:
            clause = self.groups.clause[domains.group]
            for d, g in (domains.open & refuted).nonzero().tolist():
                self.state.leaves.append(Leaf(int(clause[d, g]), domains.lower[d], domains.upper[d]))
        return replace(domains, open=domains.open & ~refuted)

    def _choose(self, domains: Domains, bounded: Bounded) -> Tensor:
        settings = self.settings.score
        most = min(_MOST_LEVELS, domains.lower.shape[1])
        order = scored(domains, bounded, self.groups, settings, most)
        if settings.method == "brute-force" and self.state.rounds < settings.bf_rounds:
            bound = self._try
            order = tried(domains, order, settings, bound, self.settings.partitions, self.hint)
        return order

    def _try(self, children: Domains) -> Tensor:
        return self.bounder.bound(children).margin

    # -- counterexamples -------------------------------------------------------------------------------------------
    def _offer(self, domains: Domains, bounded: Bounded) -> None:
        """Offer points that violate a clause by the graph's own arithmetic."""
        if self.on_candidate is None or self.state.offered >= _OFFERED:
            return
        points = candidates(self.problem.graph, self.groups, domains, bounded, _OFFERED_PER_ROUND)
        for point in points.cpu().numpy():
            self.state.offered += 1
            if self.on_candidate(point):
                raise _Confirmed

    def _attack(self, store: DomainStore) -> None:
        """Attack the worst boxes and the newest one, as often as the share of time allows."""
        if self.on_boxes is None or len(store) == 0:
            return
        check = self.settings.check
        first = self.settings.first_attack and not self.state.attacked_first
        elapsed = time.monotonic() - self.state.started
        due = check.enabled and self.state.visited >= check.from_visited and check.boxes > 0
        if not first and (not due or self.state.attack_seconds > _ATTACK_SHARE * elapsed):
            return
        began = time.monotonic()
        worst, newest = store.look(max(check.boxes, _FIRST_BOXES) if first else check.boxes), store.newest()
        boxes = Domains(*(torch.cat(pair) for pair in zip(worst.tensors(), newest.tensors(), strict=True)))
        domain, position = boxes.open.nonzero(as_tuple=True)
        clause = self.groups.clause[boxes.group][domain, position]
        region = self.bounder.region(boxes.pick(domain))
        self.state.attacked_first = True
        confirmed = self.on_boxes(region.lower, region.upper, clause, first)
        self.state.attack_seconds += time.monotonic() - began
        if confirmed:
            raise _Confirmed

    # -- beginnings, sizes and ends --------------------------------------------------------------------------------
    def _roots(self) -> Domains:
        groups, device = self.groups, self.groups.region.device
        count, (g, _) = len(groups), groups.shape
        clause = groups.clause.clamp_min(0)
        known = known_gap(self.problem.clauses.margin(self.start.lower)[clause])
        low, high = (side[groups.region] for side in self.box)
        inputs = low.shape[1]
        half = low.new_zeros(count, self.bounder.half_spaces, inputs + 1)
        half[..., -1] = -1  # 0 . x - 1 <= 0: everything
        return Domains(
            id=torch.arange(count, device=device),
            group=torch.arange(count, device=device),
            depth=torch.zeros(count, dtype=torch.int64, device=device),
            lower=low,
            upper=high,
            open=groups.clause >= 0,
            margin=torch.where(groups.clause >= 0, known, torch.inf).reshape(count, g),
            order=torch.full((count, min(_MOST_LEVELS, inputs)), -1, dtype=torch.int16, device=device),
            phase=torch.zeros(count, self.bounder.phases, dtype=torch.int8, device=device),
            half=half,
        )

    def _hint(self, like: Tensor) -> Tensor | None:
        hint = self.settings.hint
        if not hint:
            return None
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
        if self.state.memory_limit is not None:
            batch = min(batch, self.state.memory_limit)
        if self.state.batch:
            planned = min(_ROUND_SHARE * max(self.problem.clock.left(), 0.1), _LONGEST_ROUND_S)
            growth = min(max(planned / max(self.state.seconds, 1e-6), 0.25), 4.0)
            batch = min(batch, max(_LEAST_BATCH, int(self.state.batch * growth)))
        return min(batch, open_domains)

    def _limit(self, open_domains: int) -> str:
        """Why the search has to stop now; empty if it may go on."""
        if self.problem.clock.left() <= 0:
            return TIME_LIMIT
        if 0 <= self.settings.max_iterations <= self.state.rounds:
            return f"round limit {self.settings.max_iterations}"
        if open_domains > self.settings.max_domains:
            return f"domain limit {self.settings.max_domains:.0f}"
        return ""

    def _report(self, store: DomainStore) -> None:
        if self.on_progress is not None:
            self.on_progress(
                InputBabProgress(
                    self.state.rounds,
                    len(store),
                    self.state.visited,
                    store.worst(),
                    time.monotonic() - self.state.started,
                    self._closed_volume(store) if self.settings.show_volume else None,
                )
            )

    def _closed_volume(self, store: DomainStore) -> float:
        """Share of all groups' boxes that is not open any more (dimensions of width 0 do not count)."""
        opened = store.look(len(store))
        widths = (self.box[1] - self.box[0]).double()[self.groups.region]
        mine = widths[opened.group]
        share = torch.where(mine > 0, (opened.upper - opened.lower).double() / mine.clamp_min(1e-300), 1.0).prod(1)
        return 1.0 - math.fsum(share.tolist()) / len(self.groups)

    def _result(self, closed: bool, reason: str, store: DomainStore) -> InputBabResult:
        return InputBabResult(
            closed,
            reason,
            self.state.visited,
            self.state.rounds,
            store.worst(),
            time.monotonic() - self.state.started,
            tuple(self.state.leaves),
        )
