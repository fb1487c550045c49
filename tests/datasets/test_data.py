"""Data sets as properties: normalisation, ranges and radii in exact arithmetic, from loaders and from files."""

from __future__ import annotations

import gzip
import pickle
import struct
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from auto_LiRPA.errors import ConfigError, SpecError
from complete_verifier.datasets import Dataset, Scaling, dataset_from_loader, load_named, load_table
from complete_verifier.datasets.named import Request

X = np.random.default_rng(0).uniform(0, 1, (3, 2, 4, 4)).astype(np.float32)


def loader(**more: Any) -> dict[str, Any]:
    return {"X": X, "labels": np.array([0, 1, 2]), "eps": np.float32(0.1)} | more


def dataset(**more: Any) -> Dataset:
    return dataset_from_loader(loader(**more), norm=np.inf, radius=None, source="loader")


def asked(data: Dataset, index: int = 0, **more: Any) -> Any:
    return data.property(index, "verified-acc", n_outputs=3, threshold=0.0, boxes=False, **more)


# -- regions ----------------------------------------------------------------------------------------------------------
def test_a_box_is_exactly_the_radius_around_the_example_cut_to_the_range() -> None:
    low, high = np.zeros((1, 2, 1, 1), np.float32), np.full((1, 2, 1, 1), 0.95, np.float32)
    for index in range(3):
        box = asked(dataset(data_min=low, data_max=high), index).regions[0].box
        for i, value in enumerate(X[index].reshape(-1).tolist()):
            radius = Fraction(float(np.float32(0.1)))
            assert Fraction(box.lo_exact[i]) == max(Fraction(value) - radius, 0)
            assert Fraction(box.hi_exact[i]) == min(Fraction(value) + radius, Fraction(float(np.float32(0.95))))


def test_a_radius_may_be_one_for_each_channel_or_example() -> None:
    by_channel = np.array([0.1, 0.2], np.float32).reshape(1, 2, 1, 1)
    by_example = np.array([0.1, 0.2, 0.3], np.float32)
    first = asked(dataset(eps=torch.from_numpy(by_channel)), 1).regions[0].box
    second = asked(dataset(eps=by_example), 1).regions[0].box
    widths = [(float(hi) - float(lo)) / 2 for lo, hi in zip(first.lo_exact, first.hi_exact, strict=True)]
    np.testing.assert_allclose(widths, [0.1] * 16 + [0.2] * 16, rtol=1e-6)
    widths = [(float(hi) - float(lo)) / 2 for lo, hi in zip(second.lo_exact, second.hi_exact, strict=True)]
    np.testing.assert_allclose(widths, [0.2] * 32, rtol=1e-6)


def test_a_ball_is_whole_and_takes_one_radius() -> None:
    data = dataset(norm=2, data_min=np.zeros((1, 2, 1, 1), np.float32))
    region = asked(data).regions[0]
    assert region.ball is not None and region.ball.p == 2
    assert region.ball.radius == Decimal(float(np.float32(0.1))) and float(region.box.lo.min()) < 0
    with pytest.raises(SpecError, match=r"loader \[0\]: norm 2 takes one radius, found 2"):
        asked(dataset(norm=2, eps=np.array([0.1, 0.2]).reshape(1, 2, 1, 1)))


def test_normalised_pixels_and_the_range_are_rounded_alike() -> None:
    """A black pixel must lie in the range, though 0 - mean over std is no float32 number."""
    scaling = Scaling((0.4914, 0.4822), (0.2023, 0.1994))
    images = np.zeros((1, 2, 3, 3), np.float32)
    images[0, :, 1] = 1
    x, (low, high) = scaling.apply(images), scaling.ends(images)
    assert (x >= low).all() and (x <= high).all() and (x == low).any() and (x == high).any()
    expected = (np.array([0.0, 1.0])[:, None] - np.array([0.4914, 0.4822])) / np.array([0.2023, 0.1994])
    np.testing.assert_allclose(np.stack([low, high]).reshape(2, 2), expected, rtol=1e-6)
    np.testing.assert_allclose(scaling.radius(2 / 255, images).reshape(-1), 2 / 255 / np.array([0.2023, 0.1994]))


# -- loaders ----------------------------------------------------------------------------------------------------------
def test_a_tuple_is_read_like_a_dict() -> None:
    low, high = np.zeros((1, 2, 1, 1), np.float32), np.ones((1, 2, 1, 1), np.float32)
    values = (torch.from_numpy(X), torch.tensor([0, 1, 2]), torch.from_numpy(high), torch.from_numpy(low), 0.1)
    for more in ((), (torch.tensor([1, 2, 0]),), (None, [1, 2, 0])):
        data = dataset_from_loader((*values, *more), norm=np.inf, radius=None, source="loader")
        assert asked(data).regions[0].box.lo.min() >= 0
        assert (data.runnerup is None) == (len(more) != 1) and (data.target is None) == (len(more) != 2)


def test_runner_up_and_target_choose_one_margin() -> None:
    data = dataset(runnerup=np.array([2, 2, 1]), target_label=np.array([1, 0, 0]))
    for kind, rival in (("runnerup", 2), ("specify-target", 1)):
        spec = data.property(0, kind, n_outputs=3, threshold=0.25, boxes=False)  # type: ignore[arg-type]
        (clause,) = spec.regions[0].clauses
        assert clause.rows[0].terms == ((0, Decimal(1)), (rival, Decimal(-1))) and clause.rows[0].rhs == Decimal("0.25")


BAD: dict[str, tuple[object, str]] = {
    "none": (None, "returns NoneType"),
    "short": ((X, [0, 1, 2]), "returns 2 values"),
    "no labels": ({"X": X}, "no labels"),
    "labels": (loader(labels=[0, 1]), "labels must be 3 whole numbers"),
    "flat": (loader(X=X.reshape(-1)), "X must be an array"),
    "words": (loader(X=np.array([["a"]])), "type <U1"),
    "nan": (loader(X=X * np.nan), "NaN or infinity"),
    "key": (loader(epsilons=1), "returns 'epsilons'"),
    "shape": (loader(data_min=np.zeros((1, 5, 1, 1))), "does not fit X"),
    "norm": (loader(norm="two"), "norm is 'two'"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_results_are_refused_in_one_line(name: str) -> None:
    result, message = BAD[name]
    with pytest.raises(ConfigError, match=message) as caught:
        dataset_from_loader(result, norm=np.inf, radius=None, source="loader")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "what"), [("runnerup", "runner-up"), ("specify-target", "target labels")])
def test_a_missing_rival_is_said(kind: Any, what: str) -> None:
    with pytest.raises(SpecError, match=what):
        dataset().property(0, kind, n_outputs=3, threshold=0.0, boxes=False)
    with pytest.raises(SpecError, match="set specification.epsilon"):
        asked(dataset(eps=None))


# -- files ------------------------------------------------------------------------------------------------------------
PIXELS = np.random.default_rng(1).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1])


def request(folder: Path, name: str, **more: Any) -> Request:
    given: dict[str, Any] = {"scaling": None, "epsilon": 0.25, "norm": np.inf} | more
    return Request(name, (folder,), **given)


def put(folder: Path, name: str, content: bytes) -> None:
    path = folder / "datasets" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_as_published(tmp_path: Path, packed: bool) -> None:
    pack, end = (gzip.compress, ".gz") if packed else (bytes, "")
    images = PIXELS[:, 0, :28, :28]
    put(tmp_path, f"MNIST/raw/t10k-images-idx3-ubyte{end}", pack(idx(images)))
    put(tmp_path, f"MNIST/raw/t10k-labels-idx1-ubyte{end}", pack(idx(LABELS)))
    data = load_named(request(tmp_path, "MNIST"))
    np.testing.assert_array_equal(data.x, images[:, None] / np.float32(255))
    assert data.labels.tolist() == LABELS.tolist() and data.input_shape == (1, 28, 28)
    box = asked(data, 1).regions[0].box
    assert box.lo.min() >= 0 and box.hi.max() <= 1 and (box.hi - box.lo).max() == 0.5


@pytest.mark.parametrize("form", ["pickle", "binary"])
def test_cifar_as_published(tmp_path: Path, form: str) -> None:
    if form == "pickle":
        batch = {b"data": PIXELS.reshape(4, -1), b"labels": LABELS.tolist()}
        put(tmp_path, "cifar-10-batches-py/test_batch", pickle.dumps(batch))
    else:
        rows = np.concatenate([LABELS.astype(np.uint8)[:, None], PIXELS.reshape(4, -1)], 1)
        put(tmp_path, "cifar-10-batches-bin/test_batch.bin", rows.tobytes())
    data = load_named(request(tmp_path, "CIFAR", scaling=Scaling((0.5,), (0.25,))))
    np.testing.assert_allclose(data.x, (PIXELS / 255 - 0.5) / 0.25, atol=1e-6)
    assert data.labels.tolist() == LABELS.tolist()
    region = data.property(0, "verified-acc", n_outputs=10, threshold=0.0, boxes=False)
    assert region.regions[0].box.hi.max() <= 2.0 and region.regions[0].box.lo.min() >= -2.0


def test_code_in_a_pickled_batch_is_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    put(tmp_path, "cifar-10-batches-py/test_batch", pickle.dumps({b"data": Hostile(), b"labels": []}))
    with pytest.raises(ConfigError, match="not a batch of CIFAR images"):
        load_named(request(tmp_path, "CIFAR"))
    assert not (tmp_path / "touched").exists()


def test_stored_arrays_have_the_defaults_of_their_name(tmp_path: Path) -> None:
    images = PIXELS.transpose(0, 2, 3, 1) / 255.0
    for place, x in (("sdp/cifar", images), ("eran/cifar_eran", images.transpose(0, 3, 1, 2))):
        folder = tmp_path / "datasets" / place
        folder.mkdir(parents=True)
        np.save(folder / "X_test.npy", x.astype(np.float32))
        np.save(folder / "y_test.npy", LABELS)
    sdp, eran = (load_named(request(tmp_path, name, epsilon=None)) for name in ("CIFAR_SDP", "CIFAR_ERAN"))
    mean, std = np.array([125.3, 123.0, 113.9]) / 255, np.array([63.0, 62.1, 66.7]) / 255
    np.testing.assert_allclose(sdp.x, (PIXELS / 255 - mean[:, None, None]) / std[:, None, None], atol=1e-5)
    assert sdp.eps is not None and eran.eps is not None
    np.testing.assert_allclose(sdp.eps.reshape(-1), 2 / 255 / std)
    np.testing.assert_allclose(eran.eps.reshape(-1), 2 / 255 / np.array([0.2023, 0.1994, 0.201]))
    with pytest.raises(ConfigError, match=r"no files X\*\.npy and y\*\.npy"):
        load_named(request(tmp_path, "MNIST_ERAN"))


def test_a_table_names_examples_targets_and_radii(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    batch = {b"data": PIXELS.reshape(4, -1), b"labels": LABELS.tolist()}
    put(tmp_path, "cifar-10-batches-py/test_batch", pickle.dumps(batch))
    pandas.DataFrame({"Idx": [2, 0], "prop": [7, 8], "Eps": [0.01, 0.02]}).to_pickle(tmp_path / "t.pkl")
    data = load_table(tmp_path / "t.pkl", load_named(request(tmp_path, "CIFAR", epsilon=0.0)))
    assert data.labels.tolist() == [4, 3] and len(data) == 2
    spec = data.property(1, "specify-target", n_outputs=10, threshold=0.0, boxes=False)
    assert spec.regions[0].clauses[0].rows[0].terms == ((3, Decimal(1)), (8, Decimal(-1)))
    assert float((spec.regions[0].box.hi - spec.regions[0].box.lo).max()) == pytest.approx(0.04)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_table(tmp_path / "none.pkl", data)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    put(tmp_path, "mnist/t10k-images-idx3-ubyte", idx(PIXELS[:, 0, :28, :28])[:-1])
    put(tmp_path, "mnist/t10k-labels-idx1-ubyte", idx(LABELS))
    with pytest.raises(ConfigError, match="not an IDX file, or damaged"):
        load_named(request(tmp_path, "MNIST"))
    put(tmp_path, "cifar-10-batches-py/test_batch", b"nonsense")
    with pytest.raises(ConfigError, match="not a batch of CIFAR"):
        load_named(request(tmp_path, "CIFAR"))
    with pytest.raises(ConfigError, match="epsilon is missing"):
        put(tmp_path, "mnist/t10k-images-idx3-ubyte", idx(PIXELS[:, 0, :28, :28]))
        load_named(request(tmp_path, "MNIST", epsilon=None))
