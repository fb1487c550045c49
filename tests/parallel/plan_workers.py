"""What a rank moves in one CROWN call, counted, for comparison with the memory model; and aliases and choices there."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.fsdp_utils import (
    fsdp_free_gathered_weights,
    fsdp_free_node,
    fsdp_gather_node,
    fsdp_shard_bounded_module,
)
from auto_LiRPA.graph.tensor_parallel import tensor_parallel
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import LocalStore, LocalWeight
from auto_LiRPA.tp_utils import tp_shard_bounded_module
from auto_LiRPA.values import Box
from complete_verifier.bab_parallel import gather_result_dict, scatter_domain_dict
from complete_verifier.config import load_config
from complete_verifier.driver.contexts import make_context
from tests.nets import Builder, dense_layers
from tests.parallel.networks import BLOCK_MIB, NETS, RELU_NETS, Held, center


def traffic(settings: ParallelSettings) -> dict[str, dict[str, Any]]:
    """By network: bytes and calls by kind, and bytes of this rank's weights."""
    context = DistributedContext.from_env(settings)
    found = {name: _one(context, name) for name in RELU_NETS}
    context.close()
    return found


def _one(context: DistributedContext, name: str) -> dict[str, Any]:
    net = NETS[name]
    store = context.make_store()
    graph = net.make(store, torch.float32)
    if context.mode == "tp":
        store = LocalStore(BLOCK_MIB)
        graph = tensor_parallel(graph, context, store)
    context.world.barrier()
    x = center(name, graph, torch.float32)
    before = _read(context.counters)
    with torch.no_grad():
        query, every = Query(), BoundSettings(compare_with_ibp=False, sparse_intermediate=False)
        compute(graph, Box(x - net.eps, x + net.eps), query, Method.CROWN, context, every)
    after = _read(context.counters)
    moved = {kind: (size - before.get(kind, (0, 0))[0], calls - before.get(kind, (0, 0))[1])
             for kind, (size, calls) in after.items()}  # fmt: skip
    return {"moved": moved, "weights": store.weight_bytes()}


def _read(counters: Counters) -> dict[str, tuple[int, int]]:
    return {kind: (one.bytes, one.calls) for kind, one in counters.collectives.items()}


def settings_for(mode: Any, rows: Any, tile_rows: int) -> ParallelSettings:
    """With blocks so small that every layer has several."""
    base = ParallelSettings(mode=mode, rows=rows, domains="replicate", threads=1, timeout_s=30)
    return replace(base, tile_rows=tile_rows, block_mib=BLOCK_MIB)


def chosen(case: tuple[list[str], bool]) -> dict[str, Any]:
    """What `make_context` makes of a configuration; ``little``: the last rank has hardly any memory."""
    words, little = case
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if little and rank == size - 1:
        with patch("complete_verifier.driver.planning.free_host_bytes", lambda: 2**20):
            context, note = make_context(load_config(words))
    else:
        context, note = make_context(load_config(words))
    found = {"mode": context.mode, "rows": context.settings.rows, "note": note}
    context.close()
    return found


def aliases(case: None) -> dict[str, Any]:
    """The earlier code base's calls on a small network, over the present process group."""
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size > 1:
        dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=30))
    x = torch.linspace(-1, 1, 320).reshape(2, 160)
    region = BoundedTensor(x, PerturbationLpNorm(norm=float("inf"), eps=0.1))
    with torch.no_grad():
        bounded = BoundedModule(held(), x)
        found: dict[str, Any] = {"plain": bounded.compute_bounds(x=(region,), method="CROWN")}
        fsdp_shard_bounded_module(bounded, size, rank, dummy_input=x)
        found["fsdp"] = bounded.compute_bounds(x=(region,), method="CROWN")
        found["local"] = [isinstance(getattr(node.op, "weight", None), LocalWeight) for node in bounded.nodes()]
        fsdp_gather_node(bounded.nodes()[1])
        fsdp_free_node(bounded.nodes()[1])
        fsdp_free_gathered_weights(bounded)
        other = BoundedModule(held(), x)
        found["names"] = tp_shard_bounded_module(other, size, rank)
        found["tp"] = other.compute_bounds(x=(region,), method="CROWN")
        found["shapes"] = [tuple(w.shape) for n in other.nodes() if (w := getattr(n.op, "weight", None)) is not None]
    whole = {
        "lower": torch.arange(7.0), "alphas": {"relu": {"out": torch.arange(42.0).reshape(2, 3, 7)}},
        "history": list(range(7)), "betas": tuple("abcdefg"), "name": 3,
    }  # fmt: skip
    found["whole"], found["mine"] = whole, scatter_domain_dict(whole, rank, size)
    found["gathered"] = gather_result_dict(found["mine"], size)
    if size > 1:
        dist.destroy_process_group()
    return found


def held() -> Held:
    """A network whose weights are large enough that none is kept whole for its size."""
    build, at = Builder((160,)), 0
    layers = dense_layers([160, 600, 500, 150], 3, torch.float32)
    for layer in layers[:-1]:
        at = build.relu(build.dense(layer, at))
    build.dense(layers[-1], at)
    return Held(build.graph())
