"""A record of every split and why every leaf was closed, so that `unsat` can be checked against the tree itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from complete_verifier.bab.domains import Domains


@dataclass(frozen=True, slots=True)
class Leaf:
    """One domain that left the search: its splits (column, sign), the clause and the reason."""

    clause: int
    splits: frozenset[tuple[int, int]]
    reason: str


@dataclass(slots=True)
class Ledger:
    """All closed leaves of a search."""

    leaves: list[Leaf] = field(default_factory=list)

    def close(self, domains: Domains, reason: str) -> None:
        """Record closed domains."""
        for clause, sign in zip(domains.clause.tolist(), domains.sign.cpu(), strict=True):
            columns = sign.nonzero().squeeze(-1).tolist()
            self.leaves.append(Leaf(clause, frozenset((c, int(sign[c])) for c in columns), reason))

    def covers(self, clauses: list[int]) -> bool:
        """True if, for every clause, the leaves cover the root: no assignment of signs is left out.

        Measured by volume: a leaf with k splits holds 2^-k of all sign assignments, leaves of a tree are disjoint, so
        they cover the root exactly when the shares add up to 1 and no two leaves overlap.
        """
        for clause in clauses:
            mine = [leaf.splits for leaf in self.leaves if leaf.clause == clause]
            if not _covers(mine):
                return False
        return True


def _covers(leaves: list[frozenset[tuple[int, int]]]) -> bool:
    """Whether the union of the leaves is everything, by splitting on a shared neuron until a leaf has none left."""
    if any(not leaf for leaf in leaves):
        return True
    if not leaves:
        return False
    counts: dict[int, int] = {}
    for leaf in leaves:
        for column, _ in leaf:
            counts[column] = counts.get(column, 0) + 1
    column = max(counts, key=lambda c: counts[c])
    for sign in (1, -1):
        inside = [leaf - {(column, sign)} for leaf in leaves if (column, -sign) not in leaf]
        if not _covers(inside):
            return False
    return True
