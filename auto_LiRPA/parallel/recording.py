"""A piece of work on a GPU that is done again and again on other numbers: recorded once, replayed for the rest.

Small tiles are bound by the host, which launches some hundred kernels and copies for each. A replay costs one launch.
It runs the same kernels on the same shapes, so a result has the same bits either way. A recording holds addresses, not
tensors: who replays it sees to it that what it reads is still there.
"""

from __future__ import annotations

import logging
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from auto_LiRPA.parallel.block_buffers import BlockBuffers
from auto_LiRPA.parallel.counters import Counters, Counts

log = logging.getLogger(__name__)

# From a matrix and one number per row (or None) to one number per row. It may overwrite the matrix, and holds nothing.
RowWork = Callable[[Tensor, Tensor | None], Tensor]
_TYPES = {torch.float32: "<f4", torch.float64: "<f8"}


@dataclass(frozen=True, slots=True)
class RowForm:
    """Shapes of a work's inputs and of its result; one dtype for all."""

    coef: torch.Size
    bias: torch.Size | None
    result: torch.Size
    dtype: torch.dtype


class Recording(ABC):
    """Fill ``coef`` and ``bias``, then `replay`."""

    coef: Tensor
    bias: Tensor | None

    @abstractmethod
    def replay(self) -> Tensor:
        """The work's result on what ``coef`` and ``bias`` hold; ``coef`` is overwritten."""


class Recorder(ABC):
    """Makes recordings of work on one device, and keeps what its users want to keep for one owner at a time."""

    possible: ClassVar[bool] = True  # False: never, on any rank of a run

    _kept: dict[Hashable, Any]
    _owner: weakref.ref[object] | None
    _paused: bool
    _refused: bool

    def __init__(self) -> None:
        self._kept, self._owner, self._paused, self._refused = {}, None, False, False

    def kept(self, owner: object) -> dict[Hashable, Any]:
        """What is kept for ``owner`` (by identity). What was kept for another is dropped."""
        if self._owner is None or self._owner() is not owner:
            self._kept, self._owner = {}, weakref.ref(owner)
        return self._kept

    def forget(self) -> None:
        """Drop all that is kept."""
        self._kept, self._owner = {}, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, nothing is recorded or replayed."""
        self._paused, before = True, self._paused
        try:
            yield
        finally:
            self._paused = before

    def refuse(self) -> None:
        """Record and replay nothing from now on."""
        self._refused = True
        self.forget()

    @property
    def works(self) -> bool:
        """Whether recordings can be made and replayed."""
        return not self._refused and not self._paused

    @abstractmethod
    def ready(self) -> None:
        """Before replays: libraries give back memory that they keep for work that is not recorded."""

    @abstractmethod
    def record(self, form: RowForm, work: RowWork) -> Recording | None:
        """``work`` recorded, not done; None where that is not possible, and it has to be called each time.

        It has been done before on such inputs, so that libraries and buffers exist.
        """


class NoRecorder(Recorder):
    """Where there is no GPU."""

    possible: ClassVar[bool] = False

    @property
    def works(self) -> bool:
        return False

    def ready(self) -> None:
        return None

    def record(self, form: RowForm, work: RowWork) -> Recording | None:
        return None


class CudaRecorder(Recorder):
    """CUDA graphs whose memory comes from one pool: they run one after the other, so each may use all of it."""

    def __init__(self, device: torch.device, counters: Counters, buffers: BlockBuffers) -> None:
        super().__init__()
        self.device, self.counters, self.buffers = device, counters, buffers
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None
        self._latest: torch.cuda.CUDAGraph | None = None  # keeps the pool alive until the next one is recorded

    @property
    def works(self) -> bool:
        return super().works and not torch.cuda.is_current_stream_capturing()

    def ready(self) -> None:
        # cuBLAS keeps memory for each stream that it has worked in: else there would be as much again for the graphs'
        torch._C._cuda_clearCublasWorkspaces()

    def forget(self) -> None:
        """Also the memory goes. NCCL would wait for what it has in graphs before it lets a group go."""
        super().forget()
        self._latest = self._pool = None

    def record(self, form: RowForm, work: RowWork) -> Recording | None:
        if not self.works or form.dtype not in _TYPES:
            return None
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        try:
            return self._captured(form, work)
        except RuntimeError as error:
            self.refuse()
            log.debug("passes are not recorded: %s", error)
            return None

    def _captured(self, form: RowForm, work: RowWork) -> Recording:
        out = torch.empty(form.result, dtype=form.dtype, device=self.device)
        bias = None if form.bias is None else torch.empty(form.bias, dtype=form.dtype, device=self.device)
        graph = torch.cuda.CUDAGraph()
        assert self._stream is not None
        self.buffers.prepare_recording()
        self.ready()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                with self.buffers.recording(), self.counters.recording() as counts:
                    coef = [torch.empty(form.coef, dtype=form.dtype, device=self.device)]
                    address = coef[0].data_ptr()
                    out.copy_(work(coef.pop(), bias))
            finally:
                graph.capture_end()
        self.ready()  # what the graph's products use is the pool's: it stays there for them
        self._latest = graph
        coefficients = torch.as_tensor(_Memory(address, form.coef, form.dtype), device=self.device)
        return _CudaRecording(coefficients, bias, out, graph, counts, self.buffers, self.counters)


@dataclass(frozen=True)
class _CudaRecording(Recording):
    coef: Tensor
    bias: Tensor | None
    _out: Tensor
    _graph: torch.cuda.CUDAGraph
    _counts: Counts
    _buffers: BlockBuffers
    _counters: Counters

    def replay(self) -> Tensor:
        with self._buffers.replaying(self._out.device):
            self._graph.replay()
        self._counters.replayed(self._counts)
        return self._out.clone()


class _Memory:
    """Memory of a graph as others see it. The graph uses it for more than this, so no tensor may hold it longer."""

    def __init__(self, address: int, shape: torch.Size, dtype: torch.dtype) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": tuple(shape),
            "typestr": _TYPES[dtype],
            "version": 3,
        }


def make_recorder(device: torch.device, counters: Counters, buffers: BlockBuffers) -> Recorder:
    """The recorder of a device."""
    return CudaRecorder(device, counters, buffers) if device.type == "cuda" else NoRecorder()
