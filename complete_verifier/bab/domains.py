"""A batch of sub-problems as a struct of tensors with a leading domain axis (DESIGN 2.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Domains:
    """D domains. R rows of a clause, U splittable neurons in all.

    ``id`` ``[D]`` int64 (unique, in order of creation), ``clause`` ``[D]`` int64, ``depth`` ``[D]`` int64,
    ``sign`` ``[D, U]`` int8 (+1: z >= 0, -1: z <= 0, 0: not split), ``beta`` ``[D, U]``, ``lower`` ``[D, R]``,
    ``slopes``: per nonlinear node ``[D, R, P, u]``.
    """

    id: Tensor
    clause: Tensor
    depth: Tensor
    sign: Tensor
    beta: Tensor
    lower: Tensor
    slopes: Mapping[int, Tensor]

    def __len__(self) -> int:
        return int(self.id.shape[0])

    def pick(self, index: Tensor) -> Domains:
        """Some of the domains, in the given order (repeats allowed)."""
        return Domains(*(x[index] for x in self._plain()), {k: v[index] for k, v in self.slopes.items()})

    def _plain(self) -> tuple[Tensor, ...]:
        return self.id, self.clause, self.depth, self.sign, self.beta, self.lower

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors in a fixed order, for stores."""
        return (*self._plain(), *(self.slopes[k] for k in sorted(self.slopes)))

    def rebuild(self, tensors: tuple[Tensor, ...]) -> Domains:
        """Inverse of `tensors` for a batch of the same kind."""
        keys = sorted(self.slopes)
        return Domains(*tensors[:6], dict(zip(keys, tensors[6:], strict=True)))

    def bytes(self) -> int:
        """Bytes that these domains occupy."""
        return sum(t.numel() * t.element_size() for t in self.tensors())


def concatenate(first: Domains, second: Domains) -> Domains:
    """Both batches, the first one's domains first."""
    pairs = zip(first.tensors(), second.tensors(), strict=True)
    return first.rebuild(tuple(torch.cat(pair) for pair in pairs))
