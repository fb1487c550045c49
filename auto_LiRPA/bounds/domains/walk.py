"""One way down and one way up through a ReLU network, for any implementation of the ReLU steps."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from auto_LiRPA.bounds.domains.schedule import ReluStep, Schedule
from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.linear import Linear


class Kernels(Protocol):
    """The ReLU steps of a batch of domains; see `EagerKernels`."""

    def down(self, step: ReluStep, coef: Tensor, bias: Tensor) -> Tensor:
        """Coefficients ``[D, n]`` on the ReLU's output -> on its input; adds to ``bias`` ``[D]``."""
        ...

    def up(self, step: ReluStep, coef: Tensor, z: Tensor, owned: bool) -> Tensor:
        """Values ``[D, n]`` before the ReLU -> after it; takes note of the derivatives of its columns."""
        ...


def walk_down(
    schedule: Schedule, kernels: Kernels, coef: Tensor, bias: Tensor, saved: dict[int, Tensor] | None
) -> Tensor | None:
    """Push coefficients ``[D, *out]`` on the output to the input, ``[D, *in]``; constants go to ``bias`` ``[D]``.

    ``saved`` receives the coefficients ``[D, n]`` that arrive at each ReLU's output. None: the input is not reached.
    """
    pending: dict[int, Tensor] = {schedule.graph.output: coef}
    spread = schedule.spread
    partial = bias if spread is None else torch.zeros_like(bias)  # of neurons that only this rank has
    for node in schedule.down:
        arrived = pending.pop(node.id, None)
        if arrived is None:
            continue
        step = schedule.relus.get(node.id)
        constant = bias if spread is None or not spread.sums(node.id) else partial
        if step is not None:
            flat = arrived.flatten(1)
            if saved is not None:
                saved[node.id] = flat
            pulled: tuple[Tensor, ...] = (kernels.down(step, flat, constant).reshape(arrived.shape),)
        else:
            assert isinstance(node.op, LinearOperator)
            if node.id not in schedule.counted:
                dot = node.op.bias_dot(arrived)
                if dot is not None:
                    constant.add_(dot)
            pulled = node.op.transpose(arrived)
        for source, part in zip(node.inputs, pulled, strict=True):
            pending[source] = pending[source] + part if source in pending else part
    if spread is not None:
        bias.add_(spread.ranks.total(partial))
    return pending.get(0)


def walk_up(
    schedule: Schedule, kernels: Kernels, saved: dict[int, Tensor], x: Tensor, to_output: bool
) -> Tensor | None:
    """Values of each row's relaxed network from its minimising input ``[D, *in]``; the output's ``[D, *out]`` if asked.

    A ReLU whose output no coefficient reached has no value: nothing that counts reads it.
    """
    values: dict[int, Tensor] = {0: x}
    for node in schedule.up:
        if not to_output and node.id not in schedule.before_relu:
            continue
        inputs = [values.get(i) for i in node.inputs]
        step = schedule.relus.get(node.id)
        if any(v is None for v in inputs) or (step is not None and node.id not in saved):
            continue
        present = [v for v in inputs if v is not None]
        if step is None:
            values[node.id] = node.op.forward(*present)
        else:
            z = present[0].flatten(1)
            fresh = step.source in schedule.alone and isinstance(schedule.graph.nodes[step.source].op, (Linear, Conv))
            values[node.id] = kernels.up(step, saved[node.id], z, fresh).reshape(present[0].shape)
        for source in node.inputs:
            if schedule.last_use[source] == node.id:
                values.pop(source, None)
    return values.get(schedule.graph.output) if to_output else None
