"""An exact oracle for small ReLU networks: mixed-integer programming by HiGHS, sharing no code with the project."""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp


def worst_violation(
    layers: list[tuple[np.ndarray, np.ndarray]],
    lower: np.ndarray,
    upper: np.ndarray,
    c: np.ndarray,
    rhs: np.ndarray,
    skip: bool = False,
) -> float:
    """Least t with ``c y - rhs <= t`` on all rows for some x in the box: negative means a counterexample exists.

    ``skip``: square hidden layers after the first add their input (``x + relu(Wx + b)``, then another ReLU).
    Big-M encoding with interval bounds.
    """
    model = _Model(lower, upper)
    value, lo, hi = np.arange(len(lower)), lower, upper
    for i, (w, b) in enumerate(layers):
        pre, plo, phi = model.affine(value, lo, hi, w, b)
        if i + 1 == len(layers):
            value, lo, hi = pre, plo, phi
            break
        post, qlo, qhi = model.relu(pre, plo, phi)
        if skip and i > 0:
            both = np.concatenate([value, post])
            eye = np.hstack([np.eye(len(post)), np.eye(len(post))])
            added = model.affine(both, np.concatenate([lo, qlo]), np.concatenate([hi, qhi]), eye, np.zeros(len(post)))
            post, qlo, qhi = model.relu(*added)
        value, lo, hi = post, qlo, qhi
    return model.minimise_worst(value, c, rhs)


class _Model:
    def __init__(self, lower: np.ndarray, upper: np.ndarray) -> None:
        self.lo, self.hi = list(lower), list(upper)
        self.integer = [0] * len(lower)
        self.rows: list[tuple[dict[int, float], float, float]] = []

    def _variables(self, lo: np.ndarray, hi: np.ndarray, integer: int = 0) -> np.ndarray:
        first = len(self.lo)
        self.lo += list(lo)
        self.hi += list(hi)
        self.integer += [integer] * len(lo)
        return np.arange(first, first + len(lo))

    def affine(
        self, x: np.ndarray, lo: np.ndarray, hi: np.ndarray, w: np.ndarray, b: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pos, neg = np.maximum(w, 0), np.minimum(w, 0)
        ylo, yhi = pos @ lo + neg @ hi + b, pos @ hi + neg @ lo + b
        y = self._variables(ylo, yhi)
        for row in range(len(b)):
            terms = {int(v): float(k) for v, k in zip(x, w[row], strict=True)}
            terms[int(y[row])] = -1.0
            self.rows.append((terms, -float(b[row]), -float(b[row])))
        return y, ylo, yhi

    def relu(self, z: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        y = self._variables(np.maximum(lo, 0), np.maximum(hi, 0))
        d = self._variables(np.zeros(len(z)), np.ones(len(z)), 1)
        for zi, yi, di, low, high in zip(z, y, d, lo, hi, strict=True):
            self.rows.append(({int(yi): 1.0, int(zi): -1.0}, 0.0, np.inf))  # y >= z
            self.rows.append(({int(yi): 1.0, int(zi): -1.0, int(di): -min(low, 0.0)}, -np.inf, -min(low, 0.0)))
            self.rows.append(({int(yi): 1.0, int(di): -max(high, 0.0)}, -np.inf, 0.0))
        return y, np.maximum(lo, 0), np.maximum(hi, 0)

    def minimise_worst(self, y: np.ndarray, c: np.ndarray, rhs: np.ndarray) -> float:
        (t,) = self._variables(np.array([-np.inf]), np.array([np.inf]))
        for row, limit in zip(c, rhs, strict=True):
            terms = {int(v): float(k) for v, k in zip(y, row, strict=True)}
            terms[int(t)] = -1.0
            self.rows.append((terms, -np.inf, float(limit)))
        matrix = np.zeros((len(self.rows), len(self.lo)))
        low, high = np.empty(len(self.rows)), np.empty(len(self.rows))
        for i, (terms, a, b) in enumerate(self.rows):
            for variable, factor in terms.items():
                matrix[i, variable] += factor
            low[i], high[i] = a, b
        goal = np.zeros(len(self.lo))
        goal[t] = 1
        found = milp(
            goal,
            constraints=LinearConstraint(matrix, low, high),
            bounds=Bounds(np.array(self.lo), np.array(self.hi)),
            integrality=np.array(self.integer),
            options={"mip_rel_gap": 0.0},
        )
        assert found.status == 0, found.message
        return float(found.x[t])
