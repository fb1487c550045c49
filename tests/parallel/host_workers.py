"""What ranks check about the memory that they share on one host; each check raises AssertionError."""

from __future__ import annotations

import gc
import logging
import mmap
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.errors import ContractError, ModelError
from auto_LiRPA.graph.onnx_file import load_proto
from auto_LiRPA.graph.onnx_reader import read_model
from auto_LiRPA.parallel import host_memory, host_store
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.host_memory import HostMemory
from auto_LiRPA.parallel.host_store import HostStore
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import HOST_ALIGNMENT, Weight, accepted, rows_of
from auto_LiRPA.parallel.whole import whole
from auto_LiRPA.values import Box
from tests.nets import Builder, dense_layers
from tests.parallel.store_checks import numbers

BLOCK_MIB = 0.01
SHAPES = [(64, 70), (1200, 33), (40, 3, 5, 5), (9, 4000)]
LARGE = (512, 1024)


def contexts() -> DistributedContext:
    """Offload, rows over all ranks."""
    settings = ParallelSettings(mode="offload", rows="shard", domains="replicate", block_mib=BLOCK_MIB, threads=1)
    return DistributedContext.from_env(settings)


def run(case: dict[str, Any]) -> dict[str, str]:
    """Name of each check -> what went wrong, nothing if nothing did."""
    found = {}
    context = contexts()
    for check in CHECKS:
        try:
            check(context, case)
            found[check.__name__] = ""
        except AssertionError:
            found[check.__name__] = traceback.format_exc()
        gc.collect()
    context.close()
    return found


def made(context: DistributedContext) -> HostStore:
    store = context.make_store()
    assert isinstance(store, HostStore)
    return store


def weights() -> list[Tensor]:
    tensors = [numbers(shape, dtype=dtype) for dtype in (torch.float32, torch.float64) for shape in SHAPES]
    return [*tensors, numbers((300, 90)).t(), numbers((70, 50)).reshape(-1)[50:].reshape(69, 50)]


def size_of(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def total(context: DistributedContext, mine: int) -> int:
    return int(sum(row[0] for row in context.world.numbers([mine])))


def mapped() -> dict[str, int]:
    """KiB of files without a name in this process, by what /proc calls it."""
    sums = {"Rss": 0, "Pss": 0}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, rest = line.partition(":")
        if key in sums:
            sums[key] += int(rest.split()[0]) * inside
        elif "-" in line.split()[0]:
            inside = "memfd:weights" in line
    return sums


def opened() -> list[int]:
    """Bytes that each open descriptor's file takes."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            if "memfd:weights" in os.readlink(f"/proc/self/fd/{entry}"):
                found.append(512 * os.stat(f"/proc/self/fd/{entry}").st_blocks)
        except OSError:
            continue
    return found


def agreements(context: DistributedContext) -> int:
    return sum(one.calls for kind, one in context.counters.collectives.items() if kind != "from host")


def late(context: DistributedContext) -> Callable[[Tensor, int, int], Tensor]:
    """Reading that the last rank is slow at."""

    def read(source: Tensor, start: int, stop: int) -> Tensor:
        time.sleep(0.1 * (context.rank == context.world_size - 1))
        return rows_of(source, start, stop)

    return read


# -- the checks ------------------------------------------------------------------------------------------------------
def weights_are_the_same(context: DistributedContext, case: dict[str, Any]) -> None:
    """Also where one rank is late with its part."""
    store, tensors = made(context), weights()
    with patch.object(host_store, "rows_of", late(context)):
        placed = [store.place(tensors[0])]
        assert torch.equal(whole(placed[0]), tensors[0])
    placed += [store.place(tensor) for tensor in tensors[1:]]
    placed.append(store.load(tensors[0], torch.float64, torch.device("cpu"), accepted))
    for weight, tensor in zip(placed, [*tensors, tensors[0].double()], strict=True):
        assert weight.shape == tensor.shape and weight.dtype == tensor.dtype
        assert torch.equal(whole(weight), tensor)
        for block in weight.blocks():
            assert block.data.is_contiguous() and block.data.data_ptr() % HOST_ALIGNMENT == 0
    wanted = size_of(tensors) + 2 * size_of(tensors[:1])
    assert total(context, store.weight_bytes()) == wanted
    share = store.weight_bytes() / wanted
    assert abs(share - 1 / context.world_size) < 0.15, share


def the_host_holds_them_once(context: DistributedContext, case: dict[str, Any]) -> None:
    tensor = numbers(LARGE)  # 2 MiB
    before = agreements(context)
    store = made(context)
    assert agreements(context) == before  # an empty store asks nobody
    weight = store.place(tensor)
    assert torch.equal(whole(weight), tensor)  # which maps every page in
    context.world.barrier()
    found = mapped()
    context.world.barrier()
    if context.world_size == 1:
        assert found == {"Rss": 0, "Pss": 0} and not opened()
        return
    assert found["Rss"] * 1024 >= size_of([tensor]), found
    assert 0.98 <= (1024 * total(context, found["Pss"]) - 4096) / size_of([tensor]) <= 1.02, found
    # P processes, one file: nothing of it has a name anywhere
    assert len(opened()) == 2  # the store's own, and the mapping's


def nothing_stays(context: DistributedContext, case: dict[str, Any]) -> None:
    def worked() -> Weight:
        return made(context).place(numbers(LARGE))

    gc.collect()
    assert mapped()["Rss"] == 0 and not opened()
    weight = worked()
    assert torch.equal(whole(weight), numbers(LARGE))  # the store is gone, the memory is not
    del weight
    context.buffers.announce(())
    gc.collect()
    assert mapped()["Rss"] == 0 and not opened()


def bounding_writes_nothing(context: DistributedContext, case: dict[str, Any]) -> None:
    build = Builder((40,))
    store = made(context)
    build.store = store  # type: ignore[assignment]
    context.buffers.debug = True
    at = 0
    layers = dense_layers([40, 90, 90, 8], 5, torch.float32)
    for layer in layers[:-1]:
        at = build.relu(build.dense(layer, at))
    build.dense(layers[-1], at)
    graph, x = build.graph(), torch.full((2, 40), 0.5)
    before = [whole(weight) for weight in graph.weights]
    with torch.no_grad():
        for method in (Method.CROWN, Method.ALPHA_CROWN):
            compute(graph, Box(x - 0.1, x + 0.1), Query(), method, context, BoundSettings())
    context.world.barrier()
    for weight, was, layer in zip(graph.weights, before, layers, strict=True):
        assert torch.equal(whole(weight), was) and torch.equal(was, layer.weight)
    context.buffers.debug = False


def a_limit_on_memory_means_copies(context: DistributedContext, case: dict[str, Any]) -> None:
    """One that the system enforces, from the second weight on."""
    store, tensors = made(context), [numbers(LARGE), numbers(LARGE, 1), numbers((300, 90))]
    placed = [store.place(tensors[0])]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with told() as lines:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 2**20, hard))
        placed.append(store.place(tensors[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    before = agreements(context)
    placed.append(store.place(tensors[2]))
    assert agreements(context) == before  # that is settled
    for weight, tensor in zip(placed, tensors, strict=True):
        assert torch.equal(whole(weight), tensor)
    copies = context.world_size
    wanted = size_of(tensors[:1]) + copies * size_of(tensors[1:])
    assert total(context, store.weight_bytes()) == wanted
    if copies == 1:
        assert not lines
        return
    assert [("own copy" in line and "File too large" in line) for line in lines] == [True] * (context.rank == 0), lines
    context.world.barrier()
    assert 1024 * total(context, mapped()["Pss"]) <= 1.02 * size_of(tensors[:1]) + 16384  # nothing of the second
    context.world.barrier()


def one_that_is_refused_ends_it_for_all(context: DistributedContext, case: dict[str, Any]) -> None:
    for fault in ("memfd_create", "open", "token", "posix_fallocate", "mmap"):
        last = context.rank == context.world_size - 1
        store, tensor = made(context), numbers(LARGE)
        with told() as lines, _broken(fault if last else ""):
            weight = store.place(tensor)
        assert torch.equal(whole(weight), tensor)
        assert store.weight_bytes() == size_of([tensor])
        assert len(lines) == (context.rank == 0 and context.world_size > 1), (fault, lines)
        assert max(opened(), default=0) < size_of([tensor]), fault  # what others got is given back
        del weight, store
        context.buffers.announce(())
        gc.collect()
        assert not opened() and mapped()["Rss"] == 0, fault


@contextmanager
def _broken(fault: str) -> Iterator[None]:
    def refused(*_: object, **__: object) -> object:
        raise OSError(12, "planted")

    if fault in ("memfd_create", "open", "posix_fallocate"):
        with patch.object(os, fault, refused):
            yield
    elif fault == "mmap":
        with patch.object(mmap, "mmap", refused):
            yield
    elif fault == "token":
        with patch.object(os, "pread", lambda *_: b"x"):
            yield
    else:
        yield


def hosts_keep_a_copy_each(context: DistributedContext, case: dict[str, Any]) -> None:
    """The last rank is on a host of its own; then every rank is."""
    tensors = weights()
    ranks = context.world_size
    for apart in (False, True):
        name = f"h{context.rank}" if apart else f"h{context.rank // max(1, ranks - 1)}"
        store = made(context)
        with told() as lines, patch.object(host_memory, "_host", lambda: (name,)):  # noqa: B023
            placed = [store.place(tensor) for tensor in tensors]
        assert not lines
        assert all(torch.equal(whole(weight), tensor) for weight, tensor in zip(placed, tensors, strict=True))
        hosts = ranks if apart else min(2, ranks)
        assert total(context, store.weight_bytes()) == hosts * size_of(tensors)
        assert bool(opened()) == (ranks == 3 and not apart)
        del placed, store
        context.buffers.announce(())
        gc.collect()


def different_weights_are_refused(context: DistributedContext, case: dict[str, Any]) -> None:
    store = made(context)
    tensor = numbers((200 if context.rank else 208, 40))
    try:
        store.place(tensor)
    except ContractError as error:
        assert "different weights" in str(error) and context.world_size > 1
    else:
        assert context.world_size == 1


def weights_that_are_no_numbers_end_it_for_all(context: DistributedContext, case: dict[str, Any]) -> None:
    """The NaN lies in a block that one rank alone fills."""
    path = Path(case["nan"])
    try:
        read_model(load_proto(path), {}, made(context), place=str(path), folder=path.parent)
    except ModelError as error:
        lines = context.world.objects(str(error))
        assert "NaN" in lines[0] and len(set(lines)) == 1
    else:
        raise AssertionError("a network with a NaN was read")


def a_rank_alone_asks_nobody(context: DistributedContext, case: dict[str, Any]) -> None:
    for own in (context.alone(), context.within_domains()):
        before = agreements(context)
        if context.rank == 0:
            store = own.make_store()
            assert torch.equal(whole(store.place(numbers(LARGE))), numbers(LARGE))
        assert agreements(context) == before and not opened()


@contextmanager
def told() -> Iterator[list[str]]:
    """Warnings of the library."""
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, logger = Kept(logging.WARNING), logging.getLogger("auto_LiRPA")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def killed(case: int) -> None:
    """Rank ``case`` is killed between getting the memory and filling it."""
    context = contexts()
    fill = HostMemory.filled

    def filled(memory: HostMemory) -> None:
        if context.rank == case:
            assert opened()
            os.kill(os.getpid(), signal.SIGKILL)
        fill(memory)

    with patch.object(HostMemory, "filled", filled):
        made(context).place(numbers(LARGE))


CHECKS: list[Callable[[DistributedContext, dict[str, Any]], None]] = [
    weights_are_the_same,
    the_host_holds_them_once,
    nothing_stays,
    bounding_writes_nothing,
    a_limit_on_memory_means_copies,
    one_that_is_refused_ends_it_for_all,
    hosts_keep_a_copy_each,
    different_weights_are_refused,
    weights_that_are_no_numbers_end_it_for_all,
    a_rank_alone_asks_nobody,
]
