"""From network and property to a counterexample: gradient attack, confirmation, repair of near misses."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.groups import Group
from complete_verifier.attack.confirm import confirm, repair
from complete_verifier.attack.objective import Candidate
from complete_verifier.attack.onnx_network import opened
from complete_verifier.attack.original import OriginalNetwork
from complete_verifier.attack.pace import Deadline
from complete_verifier.attack.pgd import AttackResult, run_attack
from complete_verifier.attack.problems import Problems, graph_dtype
from complete_verifier.attack.settings import AttackSettings
from complete_verifier.attack.team import Team
from complete_verifier.spec.counterexample import Counterexample
from complete_verifier.spec.property import Property
from complete_verifier.together import first_rank

logger = logging.getLogger(__name__)

# The best point is worth a repair if its worst row misses by no more than float32 may be off: this, relative to
# 1 + the size of the right-hand sides. Nothing rests on it but time.
_NEAR_MISS = 1e-5


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A confirmed counterexample, if there is one, and what the attack says of the rest."""

    counterexample: Counterexample | None
    attack: AttackResult


def find_counterexample(
    graph: Graph,
    prop: Property,
    original: str | Path | OriginalNetwork,
    settings: AttackSettings,
    device: torch.device | str,
    deadline: Deadline,
    problems: Problems | None = None,
    context: DistributedContext | None = None,
) -> SearchResult:
    """Attack ``prop`` until a candidate is confirmed by the original network or steps or time are used up.

    Args:
        graph: the network, on ``device``.
        original: the same network as its owner runs it, or the path of its ONNX file.
        deadline: seconds left.
        problems: parts of the property's boxes to search (`Problems.narrowed`); None: all of them.
        context: all its ranks attack together, each from starts of its own: what one of them finds ends it for all,
            and all have the same result. None: this process by itself.
    """
    target = problems
    if target is None:
        target = Problems.from_property(prop, graph.input_shape, graph_dtype(graph), device)
    judge = _Judge(graph, prop, original, target, deadline, Team.of(context).group)
    result = run_attack(graph, target, settings, device, deadline, judge.accepts, context)
    if judge.found is None and result.best is not None and _near_miss(result.best, target, settings):
        judge.accepts(result.best)
    return SearchResult(judge.found, result)


class _Judge:
    """Confirms candidates, on the first rank; a file is opened once, for the first of them."""

    def __init__(
        self,
        graph: Graph,
        prop: Property,
        original: str | Path | OriginalNetwork,
        problems: Problems,
        deadline: Deadline,
        group: Group,
    ) -> None:
        self.found: Counterexample | None = None
        self._graph = graph
        self._prop = prop
        self._original = original
        self._problems = problems
        self._deadline = deadline
        self._group = group

    def accepts(self, candidate: Candidate) -> bool:
        """Whether the candidate, or a point close to it, is a counterexample."""
        self.found = first_rank(self._group, lambda: confirm(self._network(), self._prop, candidate.x))
        if self.found is None:
            self.found = repair(
                self._graph, self._original, self._prop, self._problems, candidate, self._deadline, self._group
            )
            logger.info("a candidate violates the property here but not as its owner runs it; a point close to it %s",
                        "does" if self.found else "does not either")  # fmt: skip
        return self.found is not None

    def _network(self) -> OriginalNetwork:
        self._original = found = opened(self._original)
        return found


def _near_miss(candidate: Candidate, problems: Problems, settings: AttackSettings) -> bool:
    """Whether the attack's arithmetic may have been wrong about the worst row, so that it is violated after all.

    Not where a margin is asked for: what misses a margin is no counterexample.
    """
    rows = problems.present[candidate.problem]
    scale = 1.0 + float(problems.rhs[candidate.problem][rows].abs().sum())
    return settings.tolerance == 0 and 0 < candidate.worst_row <= _NEAR_MISS * scale
