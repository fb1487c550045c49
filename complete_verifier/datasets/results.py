"""What a user's loader returns (a dict or a tuple), checked and brought into one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auto_LiRPA.errors import ConfigError
from complete_verifier.datasets.dataset import Dataset, Floats, Integers

# A tuple holds these, in this order; the last two may be left out.
TUPLE = ("X", "labels", "data_max", "data_min", "eps", "runnerup", "target_label")
_REQUIRED = 5
_KNOWN = frozenset({*TUPLE, "norm", "epsilon"})


def dataset_from_loader(result: object, *, norm: float, radius: Floats | None, source: str) -> Dataset:
    """The data set that a loader returned.

    Args:
        result: a mapping with `X`, `labels` and, as far as it has them, `data_max`, `data_min`, `eps`, `norm`,
            `runnerup`, `target_label`; or a tuple (X, labels, data_max, data_min, eps[, runnerup[, target_label]]).
        norm: `specification.norm`, where the loader names none.
        radius: of the inputs, by `specification.epsilon` and `data.std`, where the loader gives no eps.

    Raises:
        ConfigError: something is missing or does not fit.
    """
    parts = _parts(result, source)
    x = _floats(parts.get("X"), "X", source)
    if x is None or x.ndim < 2 or len(x) == 0:
        raise ConfigError(f"{source}: the loader's X must be an array with one example per row of its first axis")
    labels = _integers(parts.get("labels"), "labels", len(x), source)
    if labels is None:
        raise ConfigError(f"{source}: the loader gives no labels")
    own = parts.get("norm")
    eps = _fitted(_floats(parts.get("eps"), "eps", source), x, "eps", source)
    return Dataset(
        x=x,
        labels=labels,
        lower=_fitted(_floats(parts.get("data_min"), "data_min", source), x, "data_min", source),
        upper=_fitted(_floats(parts.get("data_max"), "data_max", source), x, "data_max", source),
        eps=radius if eps is None else eps,
        norm=norm if own is None else _norm(own, source),
        runnerup=_integers(parts.get("runnerup"), "runnerup", len(x), source),
        target=_integers(parts.get("target_label"), "target_label", len(x), source),
        source=source,
    )


def _parts(result: object, source: str) -> Mapping[str, object]:
    if isinstance(result, Mapping):
        unknown = [key for key in result if key not in _KNOWN]
        if unknown:
            raise ConfigError(f"{source}: the loader returns {unknown[0]!r}; known are {', '.join(sorted(_KNOWN))}")
        return result
    if isinstance(result, Sequence) and not isinstance(result, str):
        if not _REQUIRED <= len(result) <= len(TUPLE):
            raise ConfigError(
                f"{source}: the loader returns {len(result)} values; expected ({', '.join(TUPLE)}), the last two if any"
            )
        return dict(zip(TUPLE, result, strict=False))
    raise ConfigError(f"{source}: the loader returns {type(result).__name__}; expected a dict or a tuple")


def _array(value: object) -> NDArray[Any] | None:
    """Tensors and whatever else holds numbers; None for None."""
    if value is None:
        return None
    detach = getattr(value, "detach", None)
    if detach is not None:  # a torch tensor
        value = detach().cpu().numpy()
    return np.asarray(value)


def _floats(value: object, name: str, source: str) -> Floats | None:
    array = _array(value)
    if array is None:
        return None
    if array.dtype.kind in "iu":
        return array.astype(np.float32)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ConfigError(f"{source}: the loader's {name} has type {array.dtype}; give float32 or float64")
    if array.dtype.itemsize < 4:
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ConfigError(f"{source}: the loader's {name} holds NaN or infinity; correct the data")
    return array


def _integers(value: object, name: str, count: int, source: str) -> Integers | None:
    array = _array(value)
    if array is None:
        return None
    array = array.reshape(-1)
    if array.dtype.kind == "f" and (array == np.round(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or len(array) != count:
        raise ConfigError(f"{source}: the loader's {name} must be {count} whole numbers, one per example of X")
    return array


def _norm(value: object, source: str) -> float:
    try:
        norm = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        norm = 0.0
    if not norm >= 1:
        raise ConfigError(f"{source}: the loader's norm is {value!r}; give a number of 1 or more, or infinity")
    return norm


def _fitted(values: Floats | None, x: Floats, name: str, source: str) -> Floats | None:
    """With an axis for the examples in front (1 or N), or a plain number."""
    if values is None:
        return None
    if values.size == 1:
        return values.reshape(())
    shaped = values
    if values.ndim == 1 and len(values) == len(x) and x.shape[1:] != values.shape:
        shaped = values.reshape(-1, *(1 for _ in x.shape[1:]))  # one number per example
    elif values.ndim == x.ndim - 1:
        shaped = values[None]
    try:
        if shaped.ndim == x.ndim and shaped.shape[0] in (1, len(x)):
            np.broadcast_shapes(shaped.shape[1:], x.shape[1:])
            return shaped
    except ValueError:
        pass
    raise ConfigError(
        f"{source}: the loader's {name} has shape {list(values.shape)}, which does not fit X of shape {list(x.shape)}"
    )
