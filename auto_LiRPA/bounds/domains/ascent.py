"""The optimisation of a batch of domains: bounds, derivatives, one Adam step, again (DESIGN 5; beta-CROWN).

Every alpha in [0, 1] and every beta >= 0 gives a sound bound, so each domain keeps the best one that any iteration
reached, and stopping early is always safe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.domains.batch import Batch, Bounded, ColumnFacts, proven, split_box
from auto_LiRPA.bounds.domains.eager import EagerKernels
from auto_LiRPA.bounds.domains.row_mix import LR_MIX, MixState, mixed_row
from auto_LiRPA.bounds.domains.schedule import Schedule
from auto_LiRPA.bounds.domains.walk import Kernels, walk_down, walk_up
from auto_LiRPA.values import Region

SecondsLeft = Callable[[], float]
Agree = Callable[[bool], bool]  # this rank wants to stop -> all ranks that share its weights do
LEAST_TO_PRUNE = 16  # a smaller batch is not worth rearranging


@dataclass(frozen=True, slots=True, kw_only=True)
class AscentSettings:
    """One optimisation. ``prune_above``: proved domains leave the batch once they are this share of it.

    ``ends_early``: it may end before its last iteration, when all is proved, nothing improves or the time is over.
    """

    iterations: int
    lr_alpha: float
    lr_beta: float
    decay: float = 0.98
    patience: float = 10
    start_save_best: float = 0.5
    prune_above: float = float("inf")
    look_every: int = 1
    ends_early: bool = True

    def keeps(self, iteration: int) -> bool:
        """Whether the variables of this iteration (from 0) are kept where they are the best so far."""
        from_here = int(self.iterations * self.start_save_best)
        return iteration == 0 or iteration >= from_here or iteration + 1 == self.iterations


def optimize_eagerly(
    schedule: Schedule,
    batch: Batch,
    settings: AscentSettings,
    seconds_left: SecondsLeft | None = None,
    agree: Agree = bool,
) -> Bounded:
    """Best bounds of a batch of domains, operation by operation.

    ``agree``: whether all ranks that fetch the same weights want to end early; each of them makes as many iterations.
    """
    kernels, mix = EagerKernels(batch, learns=True), MixState(batch)
    full = len(batch)
    result = Bounded(batch.mix.new_full((full,), -torch.inf), batch.value.clone(), batch.mix.clone(), 0)
    place: Tensor | None = None  # of the present domains in the result; None while all are present
    lower, saved_lower = result.lower.clone(), result.lower.clone()
    stale, done = 0, 0
    for iteration in range(settings.iterations):
        last = iteration + 1 == settings.iterations
        saved: dict[int, Tensor] = {}
        found, x = bound_once(schedule, kernels, batch, mix.weight, None if last else saved)
        done = iteration + 1
        improved = found > lower
        lower = torch.fmax(lower, found)
        if settings.keeps(iteration):
            take = found > saved_lower
            saved_lower = torch.where(take, found, saved_lower)
            kernels.keep(take)
            mix.keep(take)
        if last:
            break
        closed = proven(lower, batch.strict)
        if settings.ends_early and done % settings.look_every == 0:
            some, closed_count = torch.stack([improved.any(), closed.sum()]).tolist()
            stale = 0 if some else stale + settings.look_every
            late = seconds_left is not None and seconds_left() <= 0
            if agree(late or closed_count == len(batch) or stale > settings.patience):
                break
            if len(batch) > closed_count > settings.prune_above * len(batch) and len(batch) > LEAST_TO_PRUNE:
                _write(result, place, lower, kernels, mix)
                rest = (~closed).nonzero().squeeze(-1)
                place = rest if place is None else place[rest]
                batch = batch.pick(rest)
                kernels.pick(rest)
                mix.pick(rest)
                lower, saved_lower, closed = lower[rest], saved_lower[rest], closed[rest]
                saved = {k: v[rest] if v.shape[0] != 1 else v for k, v in saved.items()}
                x = x[rest]
        output = walk_up(schedule, kernels, saved, x, mix.learns)
        rate = settings.decay**iteration
        active = (~closed).to(lower)
        kernels.ascend(active, done, settings.lr_alpha * rate, settings.lr_beta * rate)
        if output is not None:
            mix.ascend(batch, output, active, done, LR_MIX * rate)
        kernels.refresh()
    _write(result, place, lower, kernels, mix)
    return Bounded(result.lower, result.value, result.mix, done)


def _write(result: Bounded, place: Tensor | None, lower: Tensor, kernels: EagerKernels, mix: MixState) -> None:
    """Put the present domains' bests into the result."""
    pairs = ((result.lower, lower), (result.value, kernels.best), (result.mix, mix.best))
    for whole, part in pairs:
        if place is None:
            whole.copy_(part)
        else:
            whole.index_copy_(0, place, part.to(whole))


def bound_once(
    schedule: Schedule, kernels: Kernels, batch: Batch, weight: Tensor, saved: dict[int, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Bounds ``[D]`` at the present variables, and each row's minimising input ``[D, *in]``."""
    coef, constant = mixed_row(batch, weight)
    bias = constant.clone()
    arrived = walk_down(schedule, kernels, coef, bias, saved)
    if arrived is None:
        return bias, batch.region.center().expand(len(batch), *schedule.graph.input_shape)
    return land(batch.region, arrived, bias)


def land(region: Region, coef: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Least value ``[D]`` of ``coef . x + bias`` over the region and where it is reached ``[D, *in]``."""
    row = coef.unsqueeze(1)
    return region.minimum(row).squeeze(1) + bias, region.minimizer(row).squeeze(1)


def bound_eagerly(schedule: Schedule, batch: Batch) -> Tensor:
    """Bounds ``[D]`` by one pass at the given variables, nothing optimised."""
    coef, constant = mixed_row(batch, batch.mix)
    bias = constant.clone()
    arrived = walk_down(schedule, EagerKernels(batch, learns=False), coef, bias, None)
    return bias if arrived is None else batch.region.minimum(arrived.unsqueeze(1)).squeeze(1) + bias


def columns_eagerly(schedule: Schedule, batch: Batch) -> ColumnFacts:
    """Coefficients on the ReLUs' outputs and boxes of all columns at the given variables, for branching."""
    saved: dict[int, Tensor] = {}
    coef, constant = mixed_row(batch, batch.mix)
    walk_down(schedule, EagerKernels(batch, learns=False), coef, constant.clone(), saved)
    return ColumnFacts(columns_of(schedule, saved, batch), *split_box(batch.lower, batch.upper, batch.sign))


def columns_of(schedule: Schedule, saved: dict[int, Tensor], batch: Batch) -> Tensor:
    """The coefficients of all columns ``[D, W]`` from those that arrived at the ReLUs."""
    out = batch.value.new_zeros(len(batch), schedule.width)
    for node, coef in saved.items():
        step = schedule.relus[node]
        mine = coef[:, : step.width] if step.prefix else coef.index_select(1, step.index)
        out[:, step.start : step.start + step.width] = mine
    return out
