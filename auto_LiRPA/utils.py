"""Small tools that training and verification scripts use beside the library."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from auto_LiRPA.errors import ConfigError

logger = logging.getLogger("auto_LiRPA")

StopCriterion = Callable[[Tensor], Tensor]


class Flatten(nn.Flatten):
    """All axes after the batch as one."""


def get_spec_matrix(X: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Margins of the label over every other class, ``[B, num_classes - 1, num_classes]``, in X's dtype and device.

    Row r of sample b is ``y_label - y_other`` for the r-th other class in order; bounds above 0 prove the label.
    """
    labels = y.to(X.device).reshape(-1)
    eye = torch.eye(num_classes, dtype=X.dtype, device=X.device)
    margins = eye[labels].unsqueeze(1) - eye.unsqueeze(0)
    others = torch.arange(num_classes, device=X.device).unsqueeze(0) != labels.unsqueeze(1)
    return margins[others].reshape(len(labels), num_classes - 1, num_classes)


@dataclass(frozen=True, slots=True)
class eyeC:  # noqa: N801 - the name that users import
    """An identity specification by its shape ``(n, B, n)`` alone."""

    shape: tuple[int, ...]
    device: torch.device | str = "cpu"

    def dense(self, like: Tensor) -> Tensor:
        """The specification ``[1, n, n]``."""
        return torch.eye(self.shape[-1], dtype=like.dtype, device=like.device).unsqueeze(0)


@dataclass(frozen=True, slots=True)
class OneHotC:
    """Specification rows with a single entry: ``coeffs`` at the outputs ``index``, both ``[S, B]``; shape (S, B, n)."""

    shape: tuple[int, ...]
    device: torch.device | str
    index: Tensor
    coeffs: Tensor

    def dense(self, like: Tensor) -> Tensor:
        """The specification ``[B, S, n]``."""
        rows, batch, width = self.shape
        out = torch.zeros(batch, rows, width, dtype=like.dtype, device=like.device)
        index, coeffs = self.index.T.unsqueeze(-1).to(like.device), self.coeffs.T.unsqueeze(-1).to(like)
        return out.scatter(2, index.expand(batch, rows, 1), coeffs.expand(batch, rows, 1))


class MultiAverageMeter:
    """Running means of named figures."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.lasts: dict[str, float] = {}
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def update(self, key: str, val: float | Tensor, n: int = 1) -> None:
        """Add a mean ``val`` over ``n`` samples."""
        number = float(val.detach().mean()) if isinstance(val, Tensor) else float(val)
        self.lasts[key] = number
        self._sums[key] += number * n
        self._counts[key] += n

    def avg(self, key: str) -> float:
        """Mean of everything added under ``key``; 0 before the first."""
        return self._sums[key] / self._counts[key] if self._counts[key] else 0.0

    def last(self, key: str) -> float:
        """The figure added last; 0 before the first."""
        return self.lasts.get(key, 0.0)

    def __repr__(self) -> str:
        return " ".join(f"{key}={self.last(key):.4f} ({self.avg(key):.4f})" for key in self.lasts)


class MultiTimer:
    """Seconds spent under each of several names."""

    def __init__(self) -> None:
        self.timer_starts: dict[str, float] = {}
        self.timer_total: defaultdict[str, float] = defaultdict(float)

    def start(self, timer: str) -> None:
        """Start (or start again) the clock ``timer``."""
        self.timer_starts[timer] = time.perf_counter()

    def add(self, timer: str) -> None:
        """Add the time since its start to a clock's total, and stop it."""
        started = self.timer_starts.pop(timer, None)
        if started is None:
            raise ConfigError(f"MultiTimer: {timer!r} was not started")
        self.timer_total[timer] += time.perf_counter() - started

    def total(self, timer: str) -> float:
        """Seconds counted so far."""
        return self.timer_total[timer]

    def __repr__(self) -> str:
        return " ".join(f"{name}={seconds:.3f}s" for name, seconds in self.timer_total.items())


def reduction_sum(x: Tensor) -> Tensor:
    """Sum over the rows: ``[B, S] -> [B, 1]``."""
    return x.sum(1, keepdim=True)


def reduction_mean(x: Tensor) -> Tensor:
    """Mean over the rows: ``[B, S] -> [B, 1]``."""
    return x.mean(1, keepdim=True)


def reduction_max(x: Tensor) -> Tensor:
    """Greatest of the rows: ``[B, S] -> [B, 1]``."""
    return x.amax(1, keepdim=True)


def reduction_min(x: Tensor) -> Tensor:
    """Least of the rows: ``[B, S] -> [B, 1]``."""
    return x.amin(1, keepdim=True)


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": reduction_sum,
    "mean": reduction_mean,
    "max": reduction_max,
    "min": reduction_min,
}


def reduction_str2func(reduction_func: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The reduction of that name; a function is handed back."""
    if not isinstance(reduction_func, str):
        return reduction_func
    if reduction_func not in REDUCTIONS:
        raise ConfigError(f"reduction {reduction_func!r}: expected one of {', '.join(REDUCTIONS)}")
    return REDUCTIONS[reduction_func]


# Rules of the form: bounds [B, S] -> which batch elements need no more work. A NaN bound proves nothing.


def stop_criterion_placeholder(threshold: float | Tensor = 0) -> StopCriterion:
    """Never stop."""
    return lambda x: torch.zeros(x.shape[0], 1, dtype=torch.bool, device=x.device)


def stop_criterion_min(threshold: float | Tensor = 0) -> StopCriterion:
    """Stop where the least row is above the threshold: every row is proved."""
    return lambda x: x.amin(1, keepdim=True) > threshold


def stop_criterion_max(threshold: float | Tensor = 0) -> StopCriterion:
    """Stop where the greatest row is above the threshold: some row is proved."""
    return lambda x: x.amax(1, keepdim=True) > threshold


def stop_criterion_all(threshold: float | Tensor = 0) -> StopCriterion:
    """Stop where all rows are above their thresholds; ``[B, S]`` as it is, for callers that look at single rows."""
    return lambda x: (x > threshold).all(dim=-1, keepdim=True)


def stop_criterion_batch(threshold: float | Tensor = 0) -> StopCriterion:
    """The row-wise answer ``[B, S]``: which rows are above their thresholds."""
    return lambda x: x > threshold


def stop_criterion_batch_any(threshold: float | Tensor = 0) -> StopCriterion:
    """Stop where any row is above its threshold: one proved row closes the element."""
    return lambda x: (x > threshold).any(dim=1, keepdim=True)


def stop_criterion_batch_topk(threshold: float | Tensor = 0, k: int = 1314) -> StopCriterion:
    """Stop where at least ``k`` rows (or all, if there are fewer) are above their thresholds."""
    return lambda x: (x > threshold).sum(dim=1, keepdim=True) >= min(k, x.shape[1])


def stop_criterion_general(threshold: float | Tensor = 0, or_spec_size: Tensor | None = None) -> StopCriterion:
    """Stop where every clause has a proved row; ``or_spec_size``: rows of each clause (None: one clause)."""

    def stop(x: Tensor) -> Tensor:
        above = x > threshold
        if or_spec_size is None:
            return above.any(dim=1, keepdim=True)
        parts = above.split([int(n) for n in or_spec_size.reshape(-1)], dim=1)
        return torch.stack([part.any(dim=1) for part in parts], dim=1).all(dim=1, keepdim=True)

    return stop


def multi_spec_keep_func_all(x: Tensor) -> Tensor:
    """True where all rows of the last axis are."""
    return x.all(dim=-1)
