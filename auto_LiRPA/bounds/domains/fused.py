"""Domains on a GPU: fused ReLU steps on buffers that stay where they are, run as captured CUDA graphs where possible.

A batch is copied into buffers of a fixed number of rows (rows beyond it keep what was there; rows are independent).
One iteration is one graph: the step's number and its rates are read from the device, so that it can be replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from auto_LiRPA.bounds.ascent import BETA1, BETA2, EPSILON
from auto_LiRPA.bounds.domains.ascent import Agree, AscentSettings
from auto_LiRPA.bounds.domains.batch import Batch, Bounded
from auto_LiRPA.bounds.domains.row_mix import LR_MIX, MixState, mixed_row
from auto_LiRPA.bounds.domains.schedule import ReluStep, Schedule
from auto_LiRPA.bounds.domains.triton_kernels import down_kernel, land_kernel, up_kernel
from auto_LiRPA.bounds.domains.walk import walk_down, walk_up
from auto_LiRPA.values import Box

LARGEST_BLOCK = 1024
WARM_UPS = 2  # runs before a capture: kernels are compiled and libraries initialised there


@dataclass(frozen=True, slots=True)
class Shape:
    """What the buffers are made for: ``rows`` domains; whether boxes and regions differ between them."""

    rows: int
    own_boxes: bool
    own_regions: bool


class FusedDomains:
    """Buffers for one `Shape`, the kernels on them, and the graphs captured so far.

    ``pool``: memory that all graphs share; None: nothing is captured, the kernels run as they are called.
    """

    def __init__(self, schedule: Schedule, like: Batch, settings: AscentSettings, shape: Shape, pool: Any) -> None:
        self._schedule, self._settings, self.shape, self._pool = schedule, settings, shape, pool
        rows, columns, device = shape.rows, schedule.width, like.value.device
        self._value, self._first, self._second, self._best = (
            torch.zeros(rows, columns, device=device) for _ in range(4)
        )
        self._sign = torch.zeros(rows, columns, dtype=torch.int8, device=device)
        count = rows if shape.own_boxes else 1
        self._box = tuple(torch.zeros(count, columns, device=device) for _ in range(2))
        count = rows if shape.own_regions else 1
        size = schedule.graph.nodes[0].size
        self._region = tuple(torch.zeros(count, size, device=device) for _ in range(2))
        self._spec = Batch(
            sign=self._sign,
            value=self._value,
            lower=self._box[0],
            upper=self._box[1],
            region=like.region,
            c=torch.zeros(rows, *like.c.shape[1:], device=device),
            rhs=torch.zeros(rows, like.rhs.shape[1], device=device),
            real=torch.ones(rows, like.rhs.shape[1], dtype=torch.bool, device=device),
            mix=torch.ones(rows, like.rhs.shape[1], device=device),
            strict=torch.zeros(rows, dtype=torch.bool, device=device),
        )
        self._mix = MixState(self._spec)
        self._bias, self._lower, self._saved_lower, self._active = (torch.zeros(rows, device=device) for _ in range(4))
        self._take = torch.zeros(rows, dtype=torch.int8, device=device)
        self._improved = torch.zeros(rows, dtype=torch.int32, device=device)
        self._step = torch.zeros((), dtype=torch.int32, device=device)
        self._rates = _rates(settings).to(device)
        self._sight: Tensor | None = None  # pinned: what was seen of a running optimisation
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}

    # -- the ReLU steps, as `walk.Kernels` asks for them ---------------------------------------------------------------
    def down(self, step: ReluStep, coef: Tensor, bias: Tensor) -> Tensor:
        """See `walk.Kernels`."""
        coef = coef if coef.stride(-1) == 1 else coef.contiguous()
        out = torch.empty(self.shape.rows, step.size, device=coef.device)
        down_kernel[(self.shape.rows,)](
            coef,
            out,
            self._value,
            self._sign,
            *self._box,
            step.place,
            step.place if step.bias is None else step.bias,
            bias,
            step.size,
            step.width,
            step.start,
            self._schedule.width,
            self._box[0].stride(0) if self.shape.own_boxes else 0,
            coef.stride(0),
            PREFIX=step.prefix,
            BELOW=step.bias is not None,
            **_launch(step.size),
        )
        return out

    def up(self, step: ReluStep, coef: Tensor, z: Tensor, owned: bool) -> Tensor:
        """See `walk.Kernels`; the variables of the step's columns move as well."""
        coef = coef if coef.stride(-1) == 1 else coef.contiguous()
        z = z.contiguous()
        out = z if owned else torch.empty_like(z)
        up_kernel[(self.shape.rows,)](
            coef,
            z,
            out,
            self._value,
            self._first,
            self._second,
            self._best,
            self._sign,
            *self._box,
            step.place,
            self._active,
            self._take,
            self._rates,
            self._step,
            step.size,
            step.width,
            step.start,
            self._schedule.width,
            self._box[0].stride(0) if self.shape.own_boxes else 0,
            coef.stride(0),
            BETA1=BETA1,
            BETA2=BETA2,
            PREFIX=step.prefix,
            **_launch(step.size),
        )
        return out

    # -- what is captured ----------------------------------------------------------------------------------------------
    def _pass(self, saved: dict[int, Tensor] | None, track: bool) -> Tensor:
        """Bounds at the present variables into ``_lower``; each row's minimising input ``[D, n]``."""
        coef, constant = mixed_row(self._spec, self._mix.weight)
        self._bias.copy_(constant)
        arrived = walk_down(self._schedule, self, coef, self._bias, saved)
        size = self._schedule.graph.nodes[0].size
        x = torch.empty(self.shape.rows, size, device=self._bias.device)
        flat = x.zero_() if arrived is None else arrived.flatten(1).contiguous()
        land_kernel[(self.shape.rows,)](
            flat,
            *self._region,
            x,
            self._bias,
            self._spec.strict,
            self._lower,
            self._saved_lower,
            self._take,
            self._active,
            self._improved,
            self._rates,
            self._step,
            size,
            self._region[0].stride(0) if self.shape.own_regions else 0,
            TRACK=track,
            **_launch(size),
        )
        return x

    def _iterate(self) -> None:
        saved: dict[int, Tensor] = {}
        x = self._pass(saved, track=True).reshape(-1, *self._schedule.graph.input_shape)
        self._mix.keep(self._take.bool())
        output = walk_up(self._schedule, self, saved, x, self._mix.learns)
        if output is not None:
            rate = self._settings.decay**self._step * LR_MIX
            self._mix.ascend(self._spec, output, self._active, self._step + 1, rate)
        self._step += 1

    def _finish(self) -> None:
        self._pass(None, track=True)
        take = self._take.bool()
        torch.where(take.unsqueeze(1), self._value, self._best, out=self._best)
        self._mix.keep(take)

    def _once(self) -> None:
        self._pass(None, track=False)

    # -- what is called ------------------------------------------------------------------------------------------------
    def optimize(self, batch: Batch, seconds_left: Callable[[], float] | None, agree: Agree = bool) -> Bounded:
        """Best bounds over alpha, beta and row weights; `optimize_eagerly` says what ``agree`` is."""
        self._load(batch)
        self._begin(batch)
        settings, count = self._settings, len(batch)
        done = 0
        sight: Callable[[], list[float]] | None = None
        while done + 1 < settings.iterations:
            self._run("iterate", self._iterate)
            done += 1
            if sight is not None:  # while the device is at the iteration after the look: it never waits for the host
                still, since = sight()
                sight, late = None, seconds_left is not None and seconds_left() <= 0
                if agree(late or not still or since > settings.patience):
                    break
            elif settings.ends_early and done % settings.look_every == 0:
                sight = self._look(count, done)
        self._step.fill_(settings.iterations - 1)
        self._run("finish", self._finish)
        return Bounded(
            self._lower[:count].clone(), self._best[:count].clone(), self._mix.best[:count].clone(), done + 1
        )

    def _look(self, count: int, done: int) -> Callable[[], list[float]]:
        """Whether some of the first ``count`` domains are not proved, and how long none has improved: to be read later.

        Copied to the host behind the iterations so far, while the next ones are queued.
        """
        stale = done - 1 - self._improved[:count].amax()
        seen = torch.stack([self._active[:count].any().to(stale.dtype), stale])
        if seen.device.type != "cuda":  # interpreted kernels
            return seen.tolist
        if self._sight is None:
            self._sight = torch.empty(2, dtype=seen.dtype, pin_memory=True)
        target = self._sight.copy_(seen, non_blocking=True)
        arrived = torch.cuda.current_stream().record_event()

        def read() -> list[float]:
            arrived.synchronize()
            found: list[float] = target.tolist()
            return found

        return read

    def bound(self, batch: Batch) -> Tensor:
        """Bounds ``[D]`` by one pass."""
        self._load(batch)
        self._run("once", self._once)
        return self._lower[: len(batch)].clone()

    def saved_coefficients(self, batch: Batch) -> dict[int, Tensor]:
        """Coefficients that arrive at the ReLUs' outputs, for the first ``len(batch)`` rows."""
        self._load(batch)
        saved: dict[int, Tensor] = {}
        self._pass(saved, track=False)
        return {node: coef[: len(batch)] for node, coef in saved.items()}

    def _load(self, batch: Batch) -> None:
        """Copy a batch into the buffers: all that a pass reads."""
        count, spec = len(batch), self._spec
        pairs = [(spec.sign, batch.sign), (spec.value, batch.value), (spec.c, batch.c), (spec.rhs, batch.rhs)]
        pairs += [(spec.real, batch.real), (spec.strict, batch.strict), (self._mix.weight, batch.mix)]
        for mine, given in pairs:
            mine[:count].copy_(given)
        region = batch.region
        assert isinstance(region, Box)
        sides = [(self._box[0], batch.lower), (self._box[1], batch.upper)]
        sides += [(self._region[0], region.lower.flatten(1)), (self._region[1], region.upper.flatten(1))]
        for mine, given in sides:
            mine[: given.shape[0]].copy_(given)

    def _begin(self, batch: Batch) -> None:
        """Start an optimisation of the loaded batch anew; a single pass needs none of it."""
        count = len(batch)
        # the best so far is what came in, put into range
        split = batch.sign != 0
        value = batch.value.clamp_min(0)
        self._best[:count].copy_(torch.where(split, value, value.clamp_max(1)))
        self._mix.best[:count].copy_(batch.mix)
        for moment in (self._first, self._second, *self._mix.moments):
            moment.zero_()
        self._lower.fill_(-torch.inf)
        self._saved_lower.fill_(-torch.inf)
        self._improved.zero_()
        self._step.zero_()

    def _run(self, name: str, body: Callable[[], None]) -> None:
        """Replay a step; capture it first if this is its first time. Or run it as it is, where nothing is captured."""
        if self._pool is None:
            body()
            return
        graph = self._graphs.get(name)
        if graph is None:
            self._graphs[name] = graph = self._capture(body)
        graph.replay()

    def _capture(self, body: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Record ``body``. The runs before it change the buffers, which are put back."""
        kept = [t.clone() for t in self._buffers()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                body()
                self._step.zero_()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # what cuBLAS uses within is the pool's then, and no other graph's capture gives it back while this one needs it
        torch._C._cuda_clearCublasWorkspaces()
        with torch.cuda.graph(graph, pool=self._pool):
            body()
        for buffer, value in zip(self._buffers(), kept, strict=True):
            buffer.copy_(value)
        return graph

    def _buffers(self) -> tuple[Tensor, ...]:
        """Everything that an iteration changes."""
        mine = (self._value, self._first, self._second, self._best, self._bias, self._lower, self._saved_lower)
        track = (self._active, self._take, self._improved, self._step)
        return (*mine, *track, self._mix.weight, self._mix.best, *self._mix.moments)


def _launch(size: int) -> dict[str, int]:
    block = min(LARGEST_BLOCK, max(32, 1 << (size - 1).bit_length()))
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 128))}


def _rates(settings: AscentSettings) -> Tensor:
    """Per iteration: the factors of alpha and beta, epsilon, and whether bests are kept (Adam with bias correction)."""
    rows = []
    for iteration in range(settings.iterations):
        scale = (1 - BETA2 ** (iteration + 1)) ** 0.5
        factor = scale / (1 - BETA1 ** (iteration + 1)) * settings.decay**iteration
        rows.append(
            [settings.lr_alpha * factor, settings.lr_beta * factor, EPSILON * scale, float(settings.keeps(iteration))]
        )
    return torch.tensor(rows)
