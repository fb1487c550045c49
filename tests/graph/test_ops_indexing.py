"""Slice, Gather, Split, Concat and Pad against onnxruntime, with random parameters where they are many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from auto_LiRPA.errors import ModelError, UnsupportedOperator
from tests.graph.single import agree, ints, kinds, model, node, read, weights

FAR = 2**31 - 1
NUMBERS = st.one_of(st.integers(-7, 7), st.sampled_from([FAR, -FAR]))


@given(
    start=NUMBERS, end=NUMBERS, step=st.sampled_from([1, 2, 3, -1, -2, -3]), axis=st.sampled_from([1, 2, -1]),
    fixed=st.booleans(),
)  # fmt: skip
def test_slice(start: int, end: int, step: int, axis: int, fixed: bool) -> None:
    assume(len(range(*slice(start, end, step).indices((0, 5, 4)[axis]))) > 0)
    constants = {"a": ints(start), "b": ints(end), "c": ints(axis), "d": ints(step)}
    agree(model([node("Slice", "x a b c d")], [1 if fixed else "N", 5, 4], constants), [1, 5, 4])


def test_slice_forms() -> None:
    agree(model([node("Slice", "x", starts=[1, 0], ends=[3, 2], axes=[1, 2])], ["N", 5, 4], opset=9), [1, 5, 4])
    agree(model([node("Slice", "x", starts=[0, 1], ends=[FAR, -1])], ["N", 5, 4], opset=9), [1, 5, 4])
    constants = {"a": ints(0, 4), "b": ints(1, -FAR), "c": ints(0, 1), "d": ints(1, -1)}
    graph = agree(model([node("Slice", "x a b c d")], [1, 5, 4], constants), [1, 5, 4])
    assert kinds(graph) == ["Select"]  # the first range is the whole batch axis


def test_slice_of_the_batch_or_to_nothing_is_refused() -> None:
    constants = {"a": ints(0), "b": ints(1), "c": ints(0)}
    nodes = [node("Concat", "x x", "t", axis=0), node("Slice", "t a b c")]
    with pytest.raises(ModelError, match=r"node the_t \(Concat\).*samples would mix"):
        read(model(nodes, ["N", 5], constants))
    agree(model(nodes, [1, 5], constants), [1, 5])
    with pytest.raises(UnsupportedOperator, match="left empty"):
        read(model([node("Slice", "x a b c")], ["N", 5], {"a": ints(3), "b": ints(3), "c": ints(1)}))


@given(
    index=st.one_of(
        st.integers(-5, 4).map(np.int64),
        st.lists(st.integers(-5, 4), min_size=1, max_size=6).map(lambda v: np.array(v, np.int64)),
        st.lists(st.integers(-5, 4), min_size=4, max_size=4).map(lambda v: np.array(v, np.int64).reshape(2, 2)),
    ),
    axis=st.sampled_from([1, -2]),
)
def test_gather(index: np.ndarray, axis: int) -> None:
    agree(model([node("Gather", "x i", axis=axis)], ["N", 5, 4], {"i": np.asarray(index)}), [1, 5, 4])


@pytest.mark.parametrize("index", [np.array(0), np.array([0]), np.array([0, 0]), np.array([[0]])], ids=str)
def test_gather_on_a_frozen_batch(index: np.ndarray) -> None:
    agree(model([node("Gather", "x i", axis=0)], [1, 5, 4], {"i": index}), [1, 5, 4])


def test_gather_refusals() -> None:
    with pytest.raises(ModelError, match=r"node the_y \(Gather\).*samples would mix"):
        read(model([node("Gather", "x i", axis=0)], ["N", 5], {"i": np.array(0)}))
    with pytest.raises(ModelError, match="outside an axis of length 5"):
        read(model([node("Gather", "x i", axis=1)], ["N", 5], {"i": np.array(5)}))


@pytest.mark.parametrize(
    ("opset", "sizes", "inputs"),
    [(11, [2, 4], "x"), (11, None, "x"), (13, [1, 5], "x s"), (13, None, "x"), (18, None, "x")],
    ids=str,
)
def test_split(opset: int, sizes: list[int] | None, inputs: str) -> None:
    attributes: dict[str, Any] = {"axis": 1}
    if opset < 13 and sizes:
        attributes["split"] = sizes
    if opset == 18:
        attributes["num_outputs"] = 2
    constants = {"s": ints(*sizes)} if sizes and opset >= 13 else {}
    nodes = [node("Split", inputs, "a b", **attributes), node("Relu", "b", "rb"), node("Concat", "rb a", axis=1)]
    agree(model(nodes, ["N", 6, 2], constants, opset=opset), [1, 6, 2])


def test_uneven_split_and_one_part_unused() -> None:
    nodes = [node("Split", "x", "a b c", axis=-1, num_outputs=3), node("Neg", "c")]
    graph = agree(model(nodes, ["N", 2, 7], opset=18), [1, 2, 7])
    assert kinds(graph) == ["Cut", "Affine"]


def test_split_that_does_not_fit() -> None:
    with pytest.raises(ModelError, match="do not fill an axis of length 6"):
        read(model([node("Split", "x s", "y b", axis=1)], ["N", 6], {"s": ints(2, 2)}))


@pytest.mark.parametrize("parts", ["x t", "t x x", "x c", "c x", "c x d t c", "c d x", "x c d", "t c x"])
@pytest.mark.parametrize("first", [1, "N"])
def test_concat(parts: str, first: int | str) -> None:
    """Constants at any place: they stand in the padding of the branch beside them."""
    constants = {"c": weights(1, 2, 4), "d": weights(1, 1, 4, seed=2)}
    nodes = [node("Relu", "x", "t"), node("Concat", parts, axis=1)]
    proto = model(nodes, [first, 3, 4], {k: v for k, v in constants.items() if k in parts.split()})
    if first == "N" and {"c", "d"} & set(parts.split()):
        assert read(proto).output_batched  # a constant as long as one sample, frozen at export
    else:
        agree(proto, [1, 3, 4])
    agree(model(nodes, [1, 3, 4], {k: v for k, v in constants.items() if k in parts.split()}), [1, 3, 4])


def test_concat_of_constants_on_the_last_axis_and_the_batch() -> None:
    agree(model([node("Concat", "x c", axis=-1)], [1, 3, 4], {"c": weights(1, 3, 2)}), [1, 3, 4])
    agree(model([node("Concat", "c x", axis=0)], [1, 3], {"c": weights(2, 3)}), [1, 3])
    with pytest.raises(ModelError, match=r"node the_y \(Concat\).*samples would mix"):
        read(model([node("Concat", "c x", axis=0)], ["N", 3], {"c": weights(2, 3)}))


def test_concat_that_does_not_fit() -> None:
    with pytest.raises(ModelError, match="differ beside axis 1"):
        read(model([node("Concat", "x c", axis=1)], [1, 3, 4], {"c": weights(1, 3, 5)}))
    with pytest.raises(ModelError, match="on the batch axis 0"):
        read(model([node("Concat", "x c", axis=1)], [1, 3, 4], {"c": weights(2, 3, 4)}))


def test_split_to_a_sequence_is_folded_by_the_library() -> None:
    nodes = [
        node("SplitToSequence", "x sizes", "parts", axis=1),
        node("SequenceAt", "parts one", "second"),
        node("MatMul", "second w"),
    ]
    constants = {"sizes": ints(2, 4), "one": np.array(1), "w": weights(4, 3)}
    for first in (1, "N"):
        graph = agree(model(nodes, [first, 6], constants), [1, 6])
        assert kinds(graph) == ["Cut", "Linear"]


PADS = st.tuples(*[st.integers(-2, 3)] * 4)


@given(pads=PADS, value=st.sampled_from([0.0, 1.5]), by_axes=st.booleans())
def test_pad_constant(pads: tuple[int, ...], value: float, by_axes: bool) -> None:
    assume(min(5 + min(pads[0], 0) + min(pads[2], 0), 4 + min(pads[1], 0) + min(pads[3], 0)) > 0)
    full = ints(0, pads[0], pads[1], 0, pads[2], pads[3])
    constants = {"p": ints(*pads) if by_axes else full, "v": np.float32(value)}
    if by_axes:
        constants["a"] = ints(1, -1)
    proto = model([node("Pad", "x p v a" if by_axes else "x p v")], ["N", 5, 4], constants, opset=18)
    agree(proto, [1, 5, 4])


@given(pads=st.tuples(*[st.integers(0, 3)] * 4), mode=st.sampled_from(["reflect", "edge"]))
def test_pad_modes(pads: tuple[int, ...], mode: str) -> None:
    constants = {"p": ints(0, pads[0], pads[1], 0, pads[2], pads[3])}
    agree(model([node("Pad", "x p", mode=mode)], ["N", 5, 4], constants), [1, 5, 4])


def test_pad_forms_and_refusals() -> None:
    agree(model([node("Pad", "x", pads=[0, 1, 0, 2], value=0.5)], ["N", 4], opset=10), [1, 4])
    with pytest.raises(ModelError, match=r"node the_y \(Pad\).*samples would mix"):
        read(model([node("Pad", "x p")], ["N", 4], {"p": ints(1, 0, 0, 0)}))
    agree(model([node("Pad", "x p")], [1, 4], {"p": ints(1, 0, 0, 0)}), [1, 4])
    with pytest.raises(ModelError, match="3 pads for 2 axes"):
        read(model([node("Pad", "x p")], ["N", 4], {"p": ints(0, 0, 0)}))
    with pytest.raises(UnsupportedOperator, match="leave nothing"):
        read(model([node("Pad", "x p")], ["N", 4], {"p": ints(0, -2, 0, -2)}))
