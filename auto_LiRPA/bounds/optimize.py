"""alpha/beta-CROWN on one tile of rows with fixed boxes: what BaB rounds, `fixed` and `stream` use (DESIGN 5).

Every value of alpha in its range and every beta >= 0 gives a sound bound, so each row keeps the best bound that any
iteration reached, and stopping early is always safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.ascent import Moments, ascend
from auto_LiRPA.bounds.backward import Relaxations, Rows, Slopes, SplitTerm, backward, concretize
from auto_LiRPA.bounds.settings import AlphaSettings
from auto_LiRPA.bounds.sweep import Gradient, objective_weight, reduce_rows, sweep
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.values import Region

Agree = Callable[[bool], bool]  # this rank wants to stop -> all ranks that share its weights do
Proven = Callable[[Tensor], Tensor]  # row bounds [B, S] -> which batch elements need no more work [B]
SecondsLeft = Callable[[], float]

# The loop looks at the clock and at what is proven once per so many iterations on a GPU, where looking means waiting.
LOOK_EVERY_CUDA = 5

MIX = -2  # the key of the row weights among the variables
LR_MIX = 0.05  # their step: they live in [0, 1] and have to be able to cross it within one round


@dataclass(frozen=True, slots=True)
class RowMix:
    """A conjunction of rows bounded as one: ``sum_r weight_r (c_r . y - rhs_r)`` with weights that are optimised too.

    If all rows ``c_r . y <= rhs_r`` hold somewhere, every such sum is <= 0 there; so one positive lower bound refutes
    the conjunction, also where no single row's bound does. (Duality of ``min_x max_r``: the best weights lose nothing
    on an affine network.) Shapes: ``c`` ``[B, R, *out]``, ``rhs`` ``[B, R]`` (0 on padding), ``real`` ``[B, R]`` bool,
    ``weight`` ``[B, R]`` >= 0 with sum 1, 0 on padding.
    """

    c: Tensor
    rhs: Tensor
    real: Tensor
    weight: Tensor

    def row(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients ``[B, 1, *out]`` and constant ``[B, 1]`` of the weighted sum."""
        coef = torch.einsum("br,br...->b...", weight, self.c).unsqueeze(1)
        return coef, -(weight * self.rhs).sum(1, keepdim=True)

    def gradient(self, weight: Tensor, value: Tensor) -> Tensor:
        """Derivative by the weights, the sum staying 1: ``value`` is the output ``[B, 1, *out]`` at the minimiser."""
        gap = (self.c.flatten(2) * value.flatten(2)).sum(-1) - self.rhs
        gap = torch.where(self.real, gap, 0.0)
        return torch.where(self.real, gap - (weight * gap).sum(1, keepdim=True), 0.0)


@dataclass(frozen=True, slots=True)
class Optimized:
    """Best bounds ``[B, T]``, and per batch element the variables that reached its best objective."""

    lower: Tensor
    slopes: Slopes
    betas: Mapping[int, Tensor]
    iterations: int
    weight: Tensor | None = None  # of a RowMix, [B, R]


def initial_slopes(
    graph: Graph, start: int, relaxations: Relaxations, batch: int, rows: int, disabled: tuple[str, ...] = ()
) -> dict[int, Tensor]:
    """CROWN's own slopes, one set per row, for every optimisable node that a pass from ``start`` can meet."""
    slopes: dict[int, Tensor] = {}
    for node_id in sorted(graph.ancestors[start] | {start}):
        relaxation = relaxations.get(node_id)
        if relaxation is None or _is_disabled(graph, node_id, disabled):
            continue
        spec = relaxation.alpha
        if spec is None or len(spec.index) == 0:
            continue
        slopes[node_id] = spec.initial.unsqueeze(1).expand(batch, rows, -1, -1).clone()
    return slopes


def _is_disabled(graph: Graph, node_id: int, disabled: tuple[str, ...]) -> bool:
    kind = type(graph.nodes[node_id].op).__name__.lower()
    return any(word.lower() in kind for word in disabled)


def optimize_rows(
    graph: Graph,
    rows: Rows,
    region: Region,
    relaxations: Relaxations,
    settings: AlphaSettings,
    slopes: Mapping[int, Tensor] | None = None,
    splits: Mapping[int, SplitTerm] | None = None,
    proven: Proven | None = None,
    seconds_left: SecondsLeft | None = None,
    mix: RowMix | None = None,
    agree: Agree | None = None,
) -> Optimized:
    """Best lower bounds of ``rows`` over alpha and beta, the boxes being fixed.

    Args:
        slopes: where to start, ``[B, T, P, u]`` per node (not modified); None starts at CROWN's slopes.
        splits: where to start for beta; index, sign and point stay.
        mix: the rows are one weighted sum per batch element, and the weights are optimised along (``rows`` gives only
            the node then).
        proven: batch elements for which it says True leave the objective; when all do, the loop ends.
        agree: whether every rank that shares the weights wants to stop. Until then this one goes on making passes that
            change nothing any more.
    """
    variables = _Variables.first(graph, rows, region, relaxations, settings, slopes, splits, mix)
    state = _Best()
    look = LOOK_EVERY_CUDA if region.center().is_cuda else 1
    keep_from = int(settings.iterations * settings.start_save_best)
    done = 0
    live = True
    for iteration in range(settings.iterations):
        last = iteration + 1 == settings.iterations
        rows, terms = variables.rows(rows), variables.terms()
        result = backward(graph, replace(rows, owned=False), relaxations, variables.slopes, terms, save=not last)
        lower = concretize(result, region)
        if live:
            keep = iteration == 0 or iteration >= keep_from or last
            state.update(lower, settings.reduction, variables.slopes, variables.others, keep)
            done = iteration + 1
        weight = objective_weight(lower, settings.reduction)
        looks = iteration % look == look - 1
        if proven is not None:
            finished = proven(state.lower)
            weight = weight * (~finished).to(weight).unsqueeze(1)
            live = live and not (looks and bool(finished.all()))
        if last:
            break
        live = live and not state.patience_over(settings.patience, iteration, look)
        live = live and not (seconds_left is not None and looks and seconds_left() <= 0)
        if agree is None and not live or agree is not None and looks and agree(not live):
            break
        found = sweep(
            graph, rows.node, result, region, relaxations, weight, variables.slopes, terms,
            with_boxes=False, with_start=bool(variables.weights),
        )  # fmt: skip
        variables.ascend(found, relaxations, settings, iteration)
    best_weight = state.betas.pop(MIX, None if mix is None else mix.weight)
    return Optimized(state.lower, state.slopes, state.betas, done, best_weight)


@dataclass(frozen=True, slots=True, eq=False)
class _Variables:
    """What one optimisation moves, in place: slopes, the splits' multipliers, a conjunction's row weights (`MIX`)."""

    slopes: dict[int, Tensor]
    betas: dict[int, Tensor]
    weights: dict[int, Tensor]
    moments: Moments
    splits: Mapping[int, SplitTerm] | None
    mix: RowMix | None

    @classmethod
    def first(
        cls,
        graph: Graph,
        rows: Rows,
        region: Region,
        relaxations: Relaxations,
        settings: AlphaSettings,
        slopes: Mapping[int, Tensor] | None,
        splits: Mapping[int, SplitTerm] | None,
        mix: RowMix | None,
    ) -> _Variables:
        """Where the optimisation starts; see `optimize_rows`."""
        height = 1 if mix else rows.coef.shape[1]
        own = (
            initial_slopes(graph, rows.node, relaxations, region.center().shape[0], height, settings.disabled)
            if slopes is None
            else {k: v.clone() for k, v in slopes.items()}
        )
        betas = {k: term.beta.clone() for k, term in splits.items()} if splits else {}
        weights = {MIX: mix.weight.clone()} if mix is not None and mix.c.shape[1] > 1 else {}
        moments = Moments.zero([*own.values(), *betas.values(), *weights.values()])
        return cls(own, betas, weights, moments, splits, mix)

    @property
    def others(self) -> dict[int, Tensor]:
        """All but the slopes."""
        return {**self.betas, **self.weights}

    def rows(self, rows: Rows) -> Rows:
        """The rows as they are now."""
        return rows if self.mix is None else Rows(rows.node, *self.mix.row(self.weights.get(MIX, self.mix.weight)))

    def terms(self) -> dict[int, SplitTerm] | None:
        """The splits with their multipliers as they are now."""
        return {k: replace(self.splits[k], beta=beta) for k, beta in self.betas.items()} if self.splits else None

    def ascend(self, found: Gradient, relaxations: Relaxations, settings: AlphaSettings, iteration: int) -> None:
        """One step uphill, and back into what is sound."""
        tensors = [*self.slopes.values(), *self.betas.values(), *self.weights.values()]
        gradients = [found.slopes.get(n, torch.zeros_like(t)) for n, t in self.slopes.items()]
        gradients += [found.betas.get(n, torch.zeros_like(t)) for n, t in self.betas.items()]
        if self.weights and self.mix is not None:
            weight, start = self.weights[MIX], found.start
            gradients.append(torch.zeros_like(weight) if start is None else self.mix.gradient(weight, start))
        rates = [settings.lr_alpha] * len(self.slopes) + [settings.lr_beta] * len(self.betas)
        decay = settings.decay**iteration
        rates = [rate * decay for rate in (*rates, *[LR_MIX] * len(self.weights))]
        ascend(tensors, gradients, self.moments, rates, iteration + 1)
        project(relaxations, self.slopes, self.betas)
        for value in self.weights.values():
            assert self.mix is not None
            _onto_simplex(value, self.mix.real)


def _onto_simplex(weight: Tensor, real: Tensor) -> None:
    """Put weights ``[B, R]`` back into their range, in place; where all would be 0, ``real`` rows get equal shares.

    All 0 is a row that is 0 everywhere, which would look like a proof where 0 suffices for one.
    """
    weight.clamp_(min=0)
    total = weight.sum(1, keepdim=True)
    tiny = torch.finfo(weight.dtype).tiny
    equal = real.to(weight) / real.sum(1, keepdim=True).clamp_min(1)
    weight.copy_(torch.where(total > tiny, weight / total.clamp_min(tiny), equal))


def project(relaxations: Relaxations, slopes: Mapping[int, Tensor], betas: Mapping[int, Tensor]) -> None:
    """Put slopes back into their sound range and multipliers to 0 or above, in place."""
    for node_id, value in slopes.items():
        spec = relaxations[node_id].alpha
        assert spec is not None
        if isinstance(spec.lower, Tensor):
            torch.maximum(value, spec.lower.to(value), out=value)
        else:
            value.clamp_(min=spec.lower)
        if isinstance(spec.upper, Tensor):
            torch.minimum(value, spec.upper.to(value), out=value)
        else:
            value.clamp_(max=spec.upper)
    for beta in betas.values():
        beta.clamp_(min=0)


class _Best:
    """Best bounds of every row so far; the variables of each batch element's best objective."""

    def __init__(self) -> None:
        self.slopes: dict[int, Tensor] = {}
        self.betas: dict[int, Tensor] = {}
        self._objective: Tensor | None = None
        self._saved: Tensor | None = None
        self._stale = torch.zeros(())
        self._lower: Tensor | None = None

    @property
    def lower(self) -> Tensor:
        assert self._lower is not None
        return self._lower

    def update(
        self, lower: Tensor, reduction: str, slopes: Mapping[int, Tensor], betas: Mapping[int, Tensor], keep: bool
    ) -> None:
        """Take in one evaluation. NaN never replaces a number."""
        objective = reduce_rows(lower, reduction)
        if self._lower is None or self._objective is None or self._saved is None:
            self._lower, self._objective, self._saved = lower, objective, objective
            self.slopes = {k: v.clone() for k, v in slopes.items()}
            self.betas = {k: v.clone() for k, v in betas.items()}
            self._stale = torch.zeros_like(objective[0])
            return
        better = objective > self._objective
        self._stale = torch.where(better.any(), torch.zeros_like(self._stale), self._stale + 1)
        self._objective = torch.where(better, objective, self._objective)
        self._lower = torch.fmax(self._lower, lower)
        if keep:
            take = objective > self._saved
            self._saved = torch.where(take, objective, self._saved)
            for kept, new in ((self.slopes, slopes), (self.betas, betas)):
                for name, value in new.items():
                    pick = take.reshape(-1, *([1] * (value.ndim - 1)))
                    kept[name] = torch.where(pick, value, kept[name])

    def patience_over(self, patience: int, iteration: int, look: int) -> bool:
        """True after more than ``patience`` evaluations in a row without any improvement."""
        return iteration % look == look - 1 and iteration >= patience and bool(self._stale > patience)
