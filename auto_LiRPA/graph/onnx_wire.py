"""Cuts the weights out of a serialised model before it is parsed.

Parsing a message copies all of its bytes twice, and a message must stay under 2 GB. The weights of a file need neither:
they are replaced by references to their place in the file (ONNX's own "external data"), and read from there when used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

# field numbers of onnx.proto
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_RAW_DATA, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 9, 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
# wire types of protocol buffers
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SMALL = 4096  # bytes: shorter tensors stay where they are


class WireError(Exception):
    """The bytes are not what was expected; the caller lets the real parser judge them."""


class Buffer(Protocol):
    """Bytes that can be sliced without reading the rest (bytes, mmap)."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Field:
    """One field: ``start:end`` with its tag, ``payload:end`` without (and without the length)."""

    number: int
    wire: int
    start: int
    payload: int
    end: int


def cut_weights(data: Buffer, location: str) -> bytes:
    """The model with every large initialiser's bytes replaced by their offset in the file ``location``.

    Raises:
        WireError: the bytes are no well-formed message.
    """
    out = bytearray()
    for field in _fields(data, 0, len(data)):
        if (field.number, field.wire) == (_MODEL_GRAPH, _BYTES):
            out += _message(_MODEL_GRAPH, _cut_graph(data, field, location))
        else:
            out += data[field.start : field.end]
    return bytes(out)


def _cut_graph(data: Buffer, graph: Field, location: str) -> bytes:
    out = bytearray()
    for field in _fields(data, graph.payload, graph.end):
        if (field.number, field.wire) == (_GRAPH_INITIALIZER, _BYTES) and field.end - field.payload > _SMALL:
            out += _message(_GRAPH_INITIALIZER, _cut_tensor(data, field, location))
        else:
            out += data[field.start : field.end]
    return bytes(out)


def _cut_tensor(data: Buffer, tensor: Field, location: str) -> bytes:
    fields = list(_fields(data, tensor.payload, tensor.end))
    raw = [f for f in fields if (f.number, f.wire) == (_TENSOR_RAW_DATA, _BYTES)]
    if len(raw) != 1 or any(f.number == _TENSOR_LOCATION for f in fields):
        return data[tensor.payload : tensor.end]
    out = bytearray()
    for field in fields:
        if field is not raw[0]:
            out += data[field.start : field.end]
    for key, value in (
        ("location", location),
        ("offset", str(raw[0].payload)),
        ("length", str(raw[0].end - raw[0].payload)),
    ):
        entry = _message(_ENTRY_KEY, key.encode()) + _message(_ENTRY_VALUE, value.encode())
        out += _message(_TENSOR_EXTERNAL, entry)
    return bytes(out + _varint(_TENSOR_LOCATION << 3 | _VARINT) + _varint(1))


def _fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    at = start
    while at < end:
        tag, payload = _read_varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, stop = _read_varint(data, payload, end)
        elif wire == _BYTES:
            length, payload = _read_varint(data, payload, end)
            stop = payload + length
        elif wire in (_FIXED64, _FIXED32):
            stop = payload + (8 if wire == _FIXED64 else 4)
        else:
            raise WireError
        if stop > end or number == 0:
            raise WireError
        yield Field(number, wire, at, payload, stop)
        at = stop


def _read_varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    """A number of up to ten bytes, seven bits each, lowest first -> the number and where it ends."""
    value = 0
    for i, byte in enumerate(data[at : min(at + 10, end)]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise WireError


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _message(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(payload)) + payload
