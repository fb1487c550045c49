"""A small transformer block as a graph, with the same weights as a plain torch function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.arithmetic import Add, Affine
from auto_LiRPA.operators.bilinear import MatMul, Mul
from auto_LiRPA.operators.exponential import Exp, Reciprocal
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.reduce import ReduceSum
from auto_LiRPA.operators.shape import Reshape, Transpose
from auto_LiRPA.operators.softmax import Differences, PairSoftmax, Softmax, pair_count
from tests.nets import Builder, Dense, dense_layers

TOKENS, WIDTH, INPUTS, OUTPUTS = 3, 4, 4, 3


def _weights(seed: int, dtype: torch.dtype) -> list[Dense]:
    size = TOKENS * WIDTH
    layers = dense_layers([INPUTS, size], seed, dtype)
    for i in range(4):
        layers += dense_layers([WIDTH, WIDTH], 100 * seed + i, dtype)
    return layers + dense_layers([size, OUTPUTS], seed + 7, dtype)


def attention(seed: int, dtype: torch.dtype = torch.float64, pairs: bool = True, block_mib: float = 16.0) -> Graph:
    """Embedding, one attention head, a residual, a ReLU, a gate ``h * exp(h / 5) / (10 + sum(exp(h / 5)))``, a head."""
    embed, query, key, value, out, head = _weights(seed, dtype)
    build = Builder((INPUTS,), block_mib)
    shape = (TOKENS, WIDTH)
    x = build.add(Reshape((TOKENS * WIDTH,), shape), (build.dense(embed, 0),), shape)

    def dense(layer: Dense, at: int) -> int:
        return build.add(Linear(build.store.place(layer.weight), layer.bias), (at,), shape)

    turned = build.add(Transpose((1, 0)), (dense(key, x),), (WIDTH, TOKENS))
    scores = build.add(MatMul(), (dense(query, x), turned), (TOKENS, TOKENS))
    if pairs:
        t = build.add(Differences(TOKENS), (scores,), (TOKENS, pair_count(TOKENS)))
        p = build.add(PairSoftmax(TOKENS), (t,), (TOKENS, TOKENS))
    else:
        p = build.add(Softmax(TOKENS), (scores,), (TOKENS, TOKENS))
    mixed = build.add(MatMul(), (p, dense(value, x)), shape)
    hidden = build.relu(build.add(Add(), (dense(out, mixed), x), shape))
    part = build.add(Affine(torch.tensor(0.2, dtype=dtype), None), (hidden,), shape)
    grown = build.add(Exp(), (part,), shape)
    total = build.add(ReduceSum((1,), True, shape), (grown,), (TOKENS, 1))
    total = build.add(Affine(None, torch.tensor(10.0, dtype=dtype)), (total,), (TOKENS, 1))
    share = build.add(Reciprocal(), (total,), (TOKENS, 1))
    shares = build.add(MatMul(), (share, _ones(build, grown, dtype)), shape)
    gated = build.add(Mul(), (build.add(Mul(), (hidden, grown), shape), shares), shape)
    build.dense(head, build.add(Reshape(shape, (TOKENS * WIDTH,)), (gated,), (TOKENS * WIDTH,)))
    return build.graph()


def _ones(build: Builder, at: int, dtype: torch.dtype) -> int:
    """A row of ones that the graph does not know to be constant: ``0 * x + 1``."""
    row = build.add(ReduceSum((0,), True, (TOKENS, WIDTH)), (at,), (1, WIDTH))
    zero, one = torch.tensor(0.0, dtype=dtype), torch.tensor(1.0, dtype=dtype)
    return build.add(Affine(zero, one), (row,), (1, WIDTH))


def run_attention(seed: int, dtype: torch.dtype = torch.float64) -> Callable[[Tensor], Tensor]:
    """The network of `attention` as a plain function of ``[N, INPUTS]``."""
    embed, query, key, value, out, head = _weights(seed, dtype)

    def forward(x: Tensor) -> Tensor:
        def dense(layer: Dense, at: Tensor) -> Tensor:
            return at @ layer.weight.T + layer.bias

        tokens = dense(embed, x).reshape(-1, TOKENS, WIDTH)
        p = torch.softmax(dense(query, tokens) @ dense(key, tokens).transpose(1, 2), -1)
        hidden = torch.relu(dense(out, p @ dense(value, tokens)) + tokens)
        grown = torch.exp(0.2 * hidden)
        return dense(head, (hidden * grown / (10 + grown.sum(-1, keepdim=True))).flatten(1))

    return forward
