"""Conv, pooling and reductions against onnxruntime, over their whole geometry."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from auto_LiRPA.errors import ModelError, UnsupportedOperator
from tests.graph.single import agree, ints, kinds, model, node, read, weights


@st.composite
def windows(draw: st.DrawFn, dilate: bool) -> tuple[list[int], dict[str, Any]]:
    """Spatial size and attributes of 1 or 2 axes."""
    axes = draw(st.integers(1, 2))

    def each(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes))

    size, kernel, strides = each(3, 8), each(1, 3), each(1, 3)
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    dilation = each(1, 2) if dilate else [1] * axes
    if dilate:
        attributes["dilations"] = dilation
    auto = draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    pads = [0] * (2 * axes)
    if auto != "NOTSET":
        assume(all(d == 1 for d in dilation))  # onnxruntime refuses these together
        assume(all(s <= k for s, k in zip(strides, kernel, strict=True)))  # and computes negative pads for these
        attributes["auto_pad"] = auto
    else:
        pads = [draw(st.integers(0, k - 1)) for k in kernel * 2]
        attributes["pads"] = pads
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padded = [s + pads[i] + pads[i + axes] for i, s in enumerate(size)]
    assume(all(p >= span for p, span in zip(padded, spans, strict=True)))
    return size, attributes


@given(geometry=windows(dilate=True), groups=st.sampled_from([1, 2]), bias=st.booleans())
def test_conv(geometry: tuple[list[int], dict[str, Any]], groups: int, bias: bool) -> None:
    size, attributes = geometry
    kernel = attributes["kernel_shape"]
    assert isinstance(kernel, list)
    constants = {"w": weights(6, 4 // groups, *kernel), "b": weights(6)}
    if not bias:
        del constants["b"]
    proto = model([node("Conv", "x w b" if bias else "x w", group=groups, **attributes)], ["N", 4, *size], constants)
    agree(proto, [1, 4, *size])


@given(geometry=windows(dilate=False), ceil=st.booleans(), include=st.booleans())
def test_average_pool(geometry: tuple[list[int], dict[str, Any]], ceil: bool, include: bool) -> None:
    size, attributes = geometry
    if ceil and "auto_pad" in attributes:
        ceil = False
    pool = node("AveragePool", "x", ceil_mode=int(ceil), count_include_pad=int(include), **attributes)
    agree(model([pool], ["N", 2, *size], opset=19), [1, 2, *size])


@given(geometry=windows(dilate=True), ceil=st.booleans())
def test_max_pool(geometry: tuple[list[int], dict[str, Any]], ceil: bool) -> None:
    size, attributes = geometry
    if ceil and "auto_pad" in attributes:
        ceil = False
    agree(model([node("MaxPool", "x", ceil_mode=int(ceil), **attributes)], ["N", 2, *size], opset=12), [1, 2, *size])


def test_unequal_pads_become_a_pad_node() -> None:
    proto = model([node("Conv", "x w", pads=[0, 1, 2, 1])], [1, 1, 5, 5], {"w": weights(2, 1, 3, 3)})
    graph = agree(proto, [1, 1, 5, 5])
    assert kinds(graph) == ["PadConstant", "Conv"]
    assert [n.name for n in graph.nodes[1:]] == ["the_y/padconstant", "the_y"]


def test_conv_without_batch_axis() -> None:
    """[C, H, W] unsqueezed to [1, C, H, W]: the 1 serves as the batch."""
    nodes = [node("Unsqueeze", "x a", "u"), node("Conv", "u w", "c"), node("Squeeze", "c a")]
    agree(model(nodes, [2, 5, 5], {"a": ints(0), "w": weights(3, 2, 3, 3)}), [2, 5, 5])


@pytest.mark.parametrize(
    ("shape", "w", "attributes", "text"),
    [
        (["N", 2, 5, 5], (3, 4, 3, 3), {}, "do not fit 2 channels"),
        (["N", 2, 5, 5], (3, 2, 3), {}, "the weight has 3 axes"),
        (["N", 2, 2, 2], (3, 2, 3, 3), {}, "does not fit into 2 entries"),
        (["N", 2, 5, 5], (3, 2, 3, 3), {"kernel_shape": [2, 2]}, "is not that of the weight"),
        (["N", 2, 5, 5], (3, 2, 3, 3), {"strides": [0, 1]}, "out of range"),
        (["N", 2, 5, 5, 5], (3, 2, 3, 3, 3), {}, "3 spatial axes have no rules"),
        ([4, 2, 5, 5], (3, 2, 3, 3), {}, "give input_shape with -1"),
    ],
    ids=str,
)
def test_conv_errors(shape: list[int | str], w: tuple[int, ...], attributes: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=rf"node the_y \(Conv\).*{text}"):
        read(model([node("Conv", "x w", **attributes)], shape, {"w": weights(*w)}))


def test_conv_with_a_computed_kernel_is_refused() -> None:
    with pytest.raises(UnsupportedOperator, match="input 1 has to be a constant"):
        read(model([node("Conv", "c x")], [1, 2, 3, 3], {"c": weights(1, 2, 5, 5)}))


@pytest.mark.parametrize("shape", [["N", 2, 5, 4], ["N", 2, 5]], ids=str)
def test_global_average_pool(shape: list[int | str]) -> None:
    agree(model([node("GlobalAveragePool", "x")], shape), shape)


def test_pool_refusals() -> None:
    nodes = [node("MaxPool", "x", "y i", kernel_shape=[2]), node("Cast", "i", "c", to=1), node("Add", "y c", "z")]
    with pytest.raises(UnsupportedOperator, match="second output of MaxPool"):
        read(model(nodes, ["N", 2, 4], output="z"))
    with pytest.raises(UnsupportedOperator, match="AveragePool with dilations"):
        read(model([node("AveragePool", "x", kernel_shape=[2], dilations=[2])], ["N", 2, 4], opset=19))
    with pytest.raises(ModelError, match="kernel_shape is missing"):
        read(model([node("MaxPool", "x")], ["N", 2, 4]))


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[1], [2], [-1], [1, 2], [-1, 1], [0], [0, 2], None], ids=str)
@pytest.mark.parametrize("opset", [11, 18])
def test_reductions(op: str, keepdims: int, axes: list[int] | None, opset: int) -> None:
    """On a frozen batch every axis works; on a free one the batch is refused by name."""
    attributes: dict[str, Any] = {"keepdims": keepdims}
    constants = {}
    if opset < 13 and axes is not None:
        attributes["axes"] = axes
    elif axes is not None:
        constants["a"] = ints(*axes)
    reduction = node(op, "x a" if constants else "x", **attributes)
    agree(model([reduction], [1, 3, 4], constants, opset=opset), [1, 3, 4])
    free = model([reduction], ["N", 3, 4], constants, opset=opset)
    if axes is None or 0 in axes:
        with pytest.raises(ModelError, match=rf"node the_y \({op}\).*samples would mix"):
            read(free)
    else:
        agree(free, [1, 3, 4])


def test_reduction_with_empty_axes() -> None:
    proto = model([node("ReduceSum", "x a", "t", noop_with_empty_axes=1), node("Relu", "t")], ["N", 3], {"a": ints()})
    assert kinds(agree(proto, [1, 3])) == ["Relu"]
