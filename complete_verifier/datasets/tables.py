"""Tables of examples, target labels and radii (`data.pkl_path`, as oval20's): rows of CIFAR-10's test split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from auto_LiRPA.errors import ConfigError
from complete_verifier.datasets.dataset import Dataset

_COLUMNS = ("Idx", "prop", "Eps")


def load_table(path: Path, images: Dataset) -> Dataset:
    """One example per row of a pickled pandas table with columns Idx, prop (target label) and Eps (of the input).

    The pickle is the user's own and is opened by pandas, which runs what it holds.

    Raises:
        ConfigError: it cannot be read, or a column is missing or does not fit the images.
    """
    try:
        import pandas
    except ImportError:
        raise ConfigError(f"{path}: data.pkl_path needs pandas; pip install pandas") from None
    try:
        table = pandas.read_pickle(path)
        index, target, eps = (np.asarray(table[name]) for name in _COLUMNS)
        index, target, eps = index.astype(np.int64), target.astype(np.int64), eps.astype(np.float64)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, ImportError) as error:
        why = getattr(error, "strerror", None) or f"expected a table with columns {', '.join(_COLUMNS)}"
        raise ConfigError(f"{path}: cannot be read ({why})") from None
    if len(index) == 0 or index.min() < 0 or index.max() >= len(images):
        raise ConfigError(f"{path}: its Idx column does not fit the {len(images)} images of {images.source}")
    return replace(
        images,
        x=images.x[index],
        labels=images.labels[index],
        eps=eps.reshape(-1, *(1 for _ in images.input_shape)),
        runnerup=target,
        target=target,
        source=str(path),
    )
