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
from auto_LiRPA.bounds.sweep import objective_weight, reduce_rows, sweep
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.values import Region

Proven = Callable[[Tensor], Tensor]  # row bounds [B, S] -> which batch elements need no more work [B]
SecondsLeft = Callable[[], float]

# The loop looks at the clock and at what is proven once per so many iterations on a GPU, where looking means waiting.
LOOK_EVERY_CUDA = 5


@dataclass(frozen=True, slots=True)
class Optimized:
    """Best bounds ``[B, T]``, and per batch element the slopes and split multipliers that reached its best objective."""

    lower: Tensor
    slopes: Slopes
    betas: Mapping[int, Tensor]
    iterations: int


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
) -> Optimized:
    """Best lower bounds of ``rows`` over alpha and beta, the boxes being fixed.

    Args:
        slopes: where to start, ``[B, T, P, u]`` per node (not modified); None starts at CROWN's slopes.
        splits: where to start for beta; index, sign and point stay.
        proven: batch elements for which it says True leave the objective; when all do, the loop ends.
    """
    batch = region.center().shape[0]
    variables = (
        initial_slopes(graph, rows.node, relaxations, batch, rows.coef.shape[1], settings.disabled)
        if slopes is None
        else {k: v.clone() for k, v in slopes.items()}
    )
    betas = {k: term.beta.clone() for k, term in splits.items()} if splits else {}
    state = _Best()
    names = [*variables, *betas]
    tensors = [*variables.values(), *betas.values()]
    moments = Moments.zero(tensors)
    rates = [settings.lr_alpha] * len(variables) + [settings.lr_beta] * len(betas)
    look = LOOK_EVERY_CUDA if rows.coef.is_cuda else 1
    rows = replace(rows, owned=False)
    done = 0
    for iteration in range(settings.iterations):
        last = iteration + 1 == settings.iterations
        terms = {k: replace(splits[k], beta=betas[k]) for k in betas} if splits else None
        result = backward(graph, rows, relaxations, variables, terms, save=not last)
        lower = concretize(result, region)
        keep_from = int(settings.iterations * settings.start_save_best)
        state.update(lower, settings.reduction, variables, betas, iteration == 0 or iteration >= keep_from or last)
        done = iteration + 1
        weight = objective_weight(lower, settings.reduction)
        if proven is not None:
            finished = proven(state.lower)
            weight = weight * (~finished).to(weight).unsqueeze(1)
            if iteration % look == look - 1 and bool(finished.all()):
                break
        if last or state.patience_over(settings.patience, iteration, look):
            break
        if seconds_left is not None and iteration % look == look - 1 and seconds_left() <= 0:
            break
        found = sweep(graph, rows.node, result, region, relaxations, weight, variables, terms, with_boxes=False)
        gradients = [
            found.slopes.get(n, torch.zeros_like(t)) if i < len(variables) else found.betas[n]
            for i, (n, t) in enumerate(zip(names, tensors, strict=True))
        ]
        decay = settings.decay**iteration
        ascend(tensors, gradients, moments, [r * decay for r in rates], iteration + 1)
        project(relaxations, variables, betas)
    return Optimized(state.lower, state.slopes, state.betas, done)


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
