"""Digests of a problem as it was read: whatever file, loader or data set it came from, equal digests ask the same."""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.parallel.store import Weight
from complete_verifier.problem import Problem

_BYTES = 16


def network_digest(graph: Graph) -> str:
    """Of every node: its kind, its inputs, its shape and all numbers in it."""
    total = hashlib.blake2b(digest_size=_BYTES)
    total.update(repr(graph.output).encode())
    for node in graph.nodes:
        total.update(repr((node.id, type(node.op).__name__, tuple(node.inputs), tuple(node.shape))).encode())
        _add(total, node.op)
    return total.hexdigest()


def question_digest(problem: Problem) -> str:
    """Of the region and all clauses, as rounded for this run's precision."""
    total = hashlib.blake2b(digest_size=_BYTES)
    clauses = problem.clauses
    for value in (problem.region, clauses.c, clauses.rhs, clauses.region, clauses.attainable_rhs):
        _add(total, value)
    return total.hexdigest()


def _add(total: hashlib.blake2b, value: object) -> None:
    if isinstance(value, Tensor):
        total.update(repr((value.dtype, tuple(value.shape))).encode())
        total.update(_bytes(value))
    elif isinstance(value, Weight):
        # how it is cut into blocks, and where they lie, is the store's business
        total.update(repr((value.dtype, tuple(value.shape))).encode())
        for block in value.blocks():
            total.update(_bytes(block.data))
    elif is_dataclass(value) and not isinstance(value, type):
        total.update(type(value).__name__.encode())
        for item in fields(value):
            _add(total, getattr(value, item.name))
    elif isinstance(value, tuple | list):
        total.update(f"{len(value)} items".encode())
        for item in value:
            _add(total, item)
    else:
        total.update(repr(value).encode())


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
