"""The plain CROWN passes of one start node's tiles: alike but for their rows, so recorded once where that pays.

A recording is kept for later calls on the same network. What changes between calls (rows, relaxations, region) is
copied into the memory that it reads; weights and constants it reads where they lie, and it is made anew if they moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import Relaxations, backward, concretize
from auto_LiRPA.bounds.rows import NeuronList, Rows, neuron_rows
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import NonlinearOperator, Relaxation
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.recording import Recording, RowForm
from auto_LiRPA.parallel.store import LocalWeight
from auto_LiRPA.parallel.tiles import Tile
from auto_LiRPA.values import Box, Region

MOST_KEPT = 64  # recordings of a network


@dataclass(slots=True, eq=False)
class TilePasses:
    """Lower bounds ``[B, 2 * height]`` of a tile's rows and their negations, for tiles in any order.

    All tiles have one height, so a pass launches the same work for each, where nothing that it does depends on which
    rows there are. The first pass of a height is done as it is, the second one is recorded.
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

    def __call__(self, position: int) -> Tensor:
        """Bounds of one tile."""
        if not self._asked:
            self._ready = self._kept_or_new()
        if self._ready is not None:
            return self._replayed(self._ready, position)
        rows = [self._rows(position)]
        first, shape, bias = rows[0].node, rows[0].coef.shape, rows[0].bias
        found = concretize(backward(self.graph, rows.pop(), self.relaxations), self.region)
        if not self._asked:
            form = RowForm(shape, None if bias is None else bias.shape, found.shape, found.dtype)
            self.context.recorder.kept(self.graph)[self._key] = _Seen(first, form)
        return found

    @property
    def _key(self) -> tuple[int, int, int]:
        return self.node, self.tiles[0].height, self.region.center().shape[0]

    def _kept_or_new(self) -> _Ready | None:
        """A recording of this pass: one that is kept, or a new one if that pays and its form is known."""
        if not self._recordable():
            self._asked = True
            return None
        kept = self.context.recorder.kept(self.graph)
        known = kept.get(self._key)
        if isinstance(known, _Ready) and known.addresses == self._addresses():
            self._asked = True
            self.context.recorder.ready()
            known.take(self.relaxations, self.region)
            return known
        if not isinstance(known, _Seen | _Ready):
            if len(kept) >= MOST_KEPT:
                kept.clear()
            return None
        self._asked = True
        ready = self._recorded(known.first, known.form)
        if ready is None:
            kept.pop(self._key)
        else:
            kept[self._key] = ready
        return ready

    def _recorded(self, first: int, form: RowForm) -> _Ready | None:
        relaxations: dict[int, Relaxation] = {}
        places: dict[int, tuple[Tensor, ...]] = {}
        for i in self.graph.ancestors[self.node]:
            if isinstance(self.graph.nodes[i].op, NonlinearOperator):
                relaxations[i], places[i] = self.relaxations[i].apart()
        box = self.region.interval()
        region = Box(box.lower.clone(), box.upper.clone())
        graph = self.graph

        def work(coef: Tensor, bias: Tensor | None) -> Tensor:
            rows = [Rows(first, coef, bias, owned=True)]
            del coef  # the pass holds them no longer than it needs
            return concretize(backward(graph, rows.pop(), relaxations), region)

        recording = self.context.recorder.record(form, work)
        if recording is None:
            return None
        return _Ready(first, form, recording, places, region, self._addresses())

    def _replayed(self, ready: _Ready, position: int) -> Tensor:
        recording = ready.recording
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
        graph = self.graph
        if torch.is_grad_enabled() or not self.context.recorder.works or not isinstance(self.region, Box):
            return False
        if len(graph.nodes[self.node].shape) != 1:
            return False  # rows that begin at neurons of a map cover a window each, which decides what is done
        below = graph.ancestors[self.node] | {self.node}
        ops = [graph.nodes[i].op for i in below if i != 0]
        return all(op.recordable for op in ops) and all(weight.recordable for weight in graph.weights)

    def _addresses(self) -> tuple[int, ...]:
        """Where the numbers lie that a recording reads."""
        found: list[int] = list(self.context.buffers.addresses())
        for i in sorted(self.graph.ancestors[self.node]):
            for value in vars(self.graph.nodes[i].op).values():
                tensor = value.tensor if isinstance(value, LocalWeight) else value
                if isinstance(tensor, Tensor):
                    found.append(tensor.data_ptr())
        return tuple(found)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A pass that was made once: the node that its rows began at, and their form."""

    first: int
    form: RowForm


@dataclass(frozen=True, slots=True)
class _Ready:
    """A recorded pass. ``places``: per nonlinear node, the tensors that its relaxation is copied into."""

    first: int
    form: RowForm
    recording: Recording
    places: dict[int, tuple[Tensor, ...]]
    region: Box
    addresses: tuple[int, ...]

    def take(self, relaxations: Relaxations, region: Region) -> None:
        """From now on it is the pass over these."""
        box = region.interval()
        into, what = [self.region.lower, self.region.upper], [box.lower, box.upper]
        for i, places in self.places.items():
            into += places
            what += relaxations[i].read_by_pull()
        torch._foreach_copy_(into, what)
