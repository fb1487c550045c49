"""The plain CROWN passes of one start node's tiles: alike but for their rows, so recorded once where that pays.

A recording is kept for later calls on the same network. What changes between calls (rows, relaxations, region) is
copied into the memory that it reads; weights and constants it reads where they lie, and it is made anew if they moved.
Recordings for regions of one form read the same memory, which is filled for one start node at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import Relaxations, backward, concretize
from auto_LiRPA.bounds.rows import NeuronList, Rows, neuron_rows
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import NonlinearOperator, Relaxation
from auto_LiRPA.operators.parallel_maps import Ranks
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.recording import Recording, RowForm
from auto_LiRPA.parallel.store import LocalWeight
from auto_LiRPA.parallel.tiles import Tile
from auto_LiRPA.values import Box, Region

MOST_KEPT = 64  # recordings of a network

_Form = tuple[torch.Size, torch.dtype]  # of a region


@dataclass(slots=True, eq=False)
class TilePasses:
    """Lower bounds ``[B, 2 * height]`` of a tile's rows and their negations, for tiles in any order.

    All tiles have one height, so a pass launches the same work for each, where nothing that it does depends on which
    rows there are. The first pass of a height is done as it is, the second one is recorded and checked against it.
    """

    graph: Graph
    node: int
    neurons: NeuronList
    tiles: tuple[Tile, ...]
    region: Region
    relaxations: Relaxations
    context: DistributedContext
    _ready: _Ready | None = None
    _asked: bool = False
    _token: object = field(default_factory=object)  # of these tiles, see `_Memory`

    def __call__(self, position: int) -> Tensor:
        """Bounds of one tile."""
        if not self._asked:
            self._ready, checked = self._kept_or_new()
            if self._ready is not None and not checked:
                return self._checked(self._ready, position)
        if self._ready is not None:
            return self._replayed(self._ready, position)
        return self._launched(position)

    def _launched(self, position: int) -> Tensor:
        """The pass as it is."""
        rows = [self._rows(position)]
        first, shape, bias = rows[0].node, rows[0].coef.shape, rows[0].bias
        found = concretize(backward(self.graph, rows.pop(), self.relaxations), self.region)
        if not self._asked:
            form = RowForm(shape, None if bias is None else bias.shape, found.shape, found.dtype)
            self.context.recorder.kept(self.graph)[self._key] = _Seen(first, form)
        return found

    @property
    def _form(self) -> _Form:
        lower = self.region.interval().lower
        return lower.shape, lower.dtype

    @property
    def _key(self) -> tuple[int, int, _Form]:
        return self.node, self.tiles[0].height, self._form

    @property
    def _below(self) -> list[int]:
        """Nodes that a pass may go through: rows may begin at the start node itself."""
        return sorted(self.graph.ancestors[self.node] | {self.node})

    def _checked(self, ready: _Ready, position: int) -> Tensor:
        """The first replay of a recording, on rows that it was not made with, beside the pass as it is.

        Other bits (on any rank whose sums are in it) end all recording: a bound may not rest on a graph that differs.
        """
        replayed, launched = self._replayed(ready, position), self._launched(position)
        same, spread = torch.equal(replayed, launched), self.graph.spread
        if spread is not None:
            same = _by_all(spread.ranks, same)
        if not same:
            self._ready = None
            self.context.recorder.refuse()
        return launched

    def _kept_or_new(self) -> tuple[_Ready | None, bool]:
        """A recording of this pass: one that is kept, or a new one if its form is known; and whether it was checked."""
        if not self._recordable():
            self._asked = True
            return None, False
        kept = self.context.recorder.kept(self.graph)
        known = kept.get(self._key)
        if isinstance(known, _Ready) and known.addresses == self._addresses():
            self._asked = True
            self.context.recorder.ready()
            return known, True
        if not isinstance(known, _Seen | _Ready):
            if len(kept) >= MOST_KEPT:
                kept.clear()
            return None, False
        self._asked = True
        ready = self._recorded(known.first, known.form)
        spread = self.graph.spread
        if spread is not None and not _by_all(spread.ranks, ready is not None):
            # a sum over ranks is recorded by all of them or by none (NCCL); and so it stays, without being asked again
            self.context.recorder.refuse()
            return None, False
        if ready is None:
            kept.pop(self._key, None)
            return None, False
        kept[self._key] = ready
        return ready, False

    def _recorded(self, first: int, form: RowForm) -> _Ready | None:
        graph = self.graph
        nonlinear = tuple(i for i in self._below if isinstance(graph.nodes[i].op, NonlinearOperator))
        # tensors made in inference mode could not be filled outside of it
        with torch.inference_mode(False), torch.no_grad():
            try:
                memory = self._memory(nonlinear)
            except torch.OutOfMemoryError:  # a pass that is not recorded needs no copies
                return None
            relaxations, region = memory.relaxations, memory.region

            def work(coef: Tensor, bias: Tensor | None) -> Tensor:
                rows = [Rows(first, coef, bias, owned=True)]
                del coef  # the pass holds them no longer than it needs
                return concretize(backward(graph, rows.pop(), relaxations), region)

            recording = self.context.recorder.record(form, work)
        if recording is None:
            return None
        return _Ready(first, form, recording, memory, nonlinear, self._addresses())

    def _memory(self, nonlinear: tuple[int, ...]) -> _Memory:
        """The memory for regions of this form, with places for the relaxations of these nodes."""
        kept = self.context.recorder.kept(self.graph)
        memory = kept.get(self._form)
        if not isinstance(memory, _Memory):
            box = self.region.interval()
            kept[self._form] = memory = _Memory(Box(box.lower.clone(), box.upper.clone()))
        for i in nonlinear:
            if i not in memory.places:
                memory.relaxations[i], memory.places[i] = self.relaxations[i].apart()
        return memory

    def _replayed(self, ready: _Ready, position: int) -> Tensor:
        recording = ready.recording
        ready.memory.take(self._token, self.region, ready.nonlinear, self.relaxations)
        with self.context.buffers.not_ahead():
            rows = self._rows(position, recording.coef)
        if recording.bias is not None:
            assert rows.bias is not None
            recording.bias.copy_(rows.bias)
        return recording.replay()

    def _rows(self, position: int, out: Tensor | None = None) -> Rows:
        tile = self.tiles[position]
        return neuron_rows(self.graph, self.node, self.neurons.cut(tile.start, tile.stop, tile.height), out=out)

    def _recordable(self) -> bool:
        """Whether all that a pass does is known beforehand."""
        graph, recorder = self.graph, self.context.recorder
        if not recorder.possible or torch.is_grad_enabled() or not isinstance(self.region, Box):
            return False
        if self.region.lower.device != self.context.device:
            return False
        if len(graph.nodes[self.node].shape) != 1:
            return False  # rows that begin at neurons of a map cover a window each, which decides what is done
        if graph.spread is not None and self.context.weights.through_host:
            return False  # sums that pass through the host
        recordable = all(graph.nodes[i].op.recordable for i in self._below if i != 0)
        return recordable and all(weight.recordable for weight in graph.weights) and recorder.works

    def _addresses(self) -> tuple[object, ...]:
        """Where the numbers lie that a recording reads, and in which form."""
        found: list[object] = list(self.context.buffers.addresses())
        for i in self._below:
            for value in vars(self.graph.nodes[i].op).values():
                tensor = value.tensor if isinstance(value, LocalWeight) else value
                if isinstance(tensor, Tensor):
                    found.append((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()))
        return tuple(found)


def _by_all(ranks: Ranks, flag: bool) -> bool:
    """Whether all ranks say so."""
    return bool(ranks.gather(torch.tensor([flag], dtype=torch.uint8)).all())


@dataclass(frozen=True, slots=True)
class _Seen:
    """A pass that was made once: the node that its rows began at, and their form."""

    first: int
    form: RowForm


@dataclass(slots=True, eq=False)
class _Memory:
    """What recorded passes read beside weights: a region, and of each nonlinear node's relaxation its ``places``.

    ``holds``: the token of the tiles whose region and relaxations are in it.
    """

    region: Box
    relaxations: dict[int, Relaxation] = field(default_factory=dict)
    places: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    holds: object | None = None

    def take(self, token: object, region: Region, nonlinear: tuple[int, ...], relaxations: Relaxations) -> None:
        """From now on passes through ``nonlinear`` nodes are over these."""
        if self.holds is token:
            return
        self.holds = token
        box = region.interval()
        into, what = [self.region.lower, self.region.upper], [box.lower, box.upper]
        for i in nonlinear:
            into += self.places[i]
            what += relaxations[i].read_by_pull()
        torch._foreach_copy_(into, what)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A recorded pass through ``nonlinear`` nodes, which reads ``memory``."""

    first: int
    form: RowForm
    recording: Recording
    memory: _Memory
    nonlinear: tuple[int, ...]
    addresses: tuple[object, ...]
