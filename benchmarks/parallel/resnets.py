"""Experiment 8's networks: residual nets for CIFAR-sized images, trained for seconds on synthetic classes.

The competition's ONNX files are not at hand, so these have their own architecture (a stem, eight blocks in four
stages, two linear layers; `large` has the paper's 95 MB of weights) and weights from a short certified training:
interval bounds of the margins and of neurons near their kink are part of the loss (Gowal et al. 2018; Xiao et al.
2019). A class is a pattern of colours on a coarse grid, drawn from the seed; a sample is the pattern with some of
another one and noise. There is no BatchNorm.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

GRID = 4  # a pattern has GRID x GRID cells
DARK, BRIGHT = 0.2, 0.8
BIAS_PART = 0.005  # of the rate
AWAKE, IDLE = 0.05, 2.0  # how far a channel's values reach to both sides of 0; weight of what is missing
PLAIN, GROWS = 0.2, 0.45  # of the training, without the certified part; and until that has its whole weight
MOST_MIXED, NOISE = 0.3, 0.1  # of another class's pattern in a sample; and of noise, peak to peak


@dataclass(frozen=True, slots=True)
class Size:
    """One network and its training.

    ``width``: channels of the first stage (doubled by each following one); ``hidden``: of the linear layers' middle;
    ``image``: pixels a side; ``eps``: radius that the training certifies; ``radius``: of the question, halved while
    more than ``most_unstable`` neurons are unstable; ``steps``: at most, fewer where all is certified; ``rate``: of
    Adam, for a neuron with one input (`_groups`); ``kink``: weight of the term that moves neurons from their kink.
    """

    width: int
    hidden: int
    classes: int
    image: int
    eps: float
    radius: float
    steps: int
    batch: int
    rate: float
    kink: float = 0.02
    stages: int = 4
    blocks: int = 2
    most_unstable: int = 3000

    @property
    def deepest(self) -> int:
        """Neurons before the linear layers."""
        return self.width * 2 ** (self.stages - 1) * (self.image // 2 ** (self.stages - 1)) ** 2


SIZES = {
    "large": Size(80, 720, 100, 32, 4 / 255, 1 / 255, 400, 64, 1.0),
    "medium": Size(32, 256, 100, 32, 4 / 255, 4 / 255, 400, 64, 1.0),
    "reduced large": Size(4, 16, 6, 8, 8 / 255, 6 / 255, 60, 24, 1.0, kink=0.0, stages=2, blocks=1),
    "reduced medium": Size(4, 16, 6, 8, 8 / 255, 9 / 255, 60, 24, 1.0, kink=0.0, stages=2, blocks=1),
}


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (1x1 where the shape changes)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, stride, 1)
        self.second = nn.Conv2d(n_out, n_out, 3, 1, 1)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride) if stride > 1 or n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, n_in, h, w] -> [B, n_out, h / stride, w / stride]``."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def build(size: Size, seed: int) -> nn.Sequential:
    """The network with weights at which neither values nor interval bounds grow with the depth."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(3, size.width, 3, 1, 1), nn.ReLU()]
    n_in = size.width
    for stage in range(size.stages):
        n_out = size.width * 2**stage
        layers.append(Block(n_in, n_out, 1 if stage == 0 else 2))
        layers += [Block(n_out, n_out, 1) for _ in range(size.blocks - 1)]
        n_in = n_out
    layers += [nn.Flatten(), nn.Linear(size.deepest, size.hidden), nn.ReLU(), nn.Linear(size.hidden, size.classes)]
    net = nn.Sequential(*layers)
    for module in net.modules():
        if isinstance(module, Block):
            _start_block(module)
    return net


def _start_block(block: Block) -> None:
    """Branches begin small (Zhang et al. 2019, Fixup); shortcuts that change the shape pass every channel on twice."""
    with torch.no_grad():
        for conv in (block.first, block.second):
            # interval bounds keep their width: the absolute weights of an output sum up to 1 (Shi et al. 2021)
            conv.weight.mul_(1 / conv.weight.abs().flatten(1).sum(1).mean())
            _no_bias(conv)
        block.second.weight.mul_(0.5)
        if isinstance(block.shortcut, nn.Conv2d):
            weight = block.shortcut.weight
            weight.mul_(0.1 / weight.abs().flatten(1).sum(1).mean())
            every = torch.arange(weight.shape[0])
            weight[every, every % weight.shape[1], 0, 0] += 1.0
            _no_bias(block.shortcut)


def _no_bias(conv: nn.Conv2d) -> None:
    assert conv.bias is not None
    conv.bias.zero_()


def patterns(size: Size, seed: int) -> Tensor:
    """One image of each class, ``[classes, 3, image, image]``."""
    gen = torch.Generator().manual_seed(seed + 1)
    bits = torch.randint(0, 2, (size.classes, 3, GRID, GRID), generator=gen)
    coarse = DARK + (BRIGHT - DARK) * bits.float()
    return functional.interpolate(coarse, size=size.image, mode="nearest")


class Intervals:
    """Values and interval bounds of one batch: ``[c - r, c + r]``; gathers how close neurons are to their kink.

    ``idle``: how far channels within blocks are from being on for some inputs and off for others. Without that term the
    certified training turns the blocks off, which leaves little but their shortcuts. ``awake``: share of those channels
    that are on for any input.
    """

    def __init__(self, x: Tensor, eps: float) -> None:
        self.c, self.r = x, torch.full_like(x, eps)
        self.kinks: list[Tensor] = []
        self.idle: list[Tensor] = []
        self.awake: list[Tensor] = []

    def map(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            self.c = module(self.c)
            self.r = functional.conv2d(self.r, module.weight.abs(), None, module.stride, module.padding)
        elif isinstance(module, nn.Linear):
            self.c, self.r = module(self.c), functional.linear(self.r, module.weight.abs())
        elif isinstance(module, nn.ReLU):
            self.relu()
        elif isinstance(module, nn.Flatten):
            self.c, self.r = self.c.flatten(1), self.r.flatten(1)
        elif isinstance(module, Block):
            c, r = self.c, self.r
            self.map(module.first)
            most, least = self.c.amax((0, 2, 3)), self.c.amin((0, 2, 3))
            self.awake.append((most > 0).float().mean())
            self.idle.append((torch.relu(AWAKE - most) + torch.relu(AWAKE + least)).mean())
            self.relu()
            self.map(module.second)
            c_branch, r_branch = self.c, self.r
            self.c, self.r = c, r
            self.map(module.shortcut)
            self.c, self.r = self.c + c_branch, self.r + r_branch
            self.relu()

    def relu(self) -> None:
        low, high = self.c - self.r, self.c + self.r
        self.kinks.append(-torch.tanh(1 + low * high / self.r.detach().square().clamp_min(1e-12)).mean())
        low, high = torch.relu(low), torch.relu(high)
        self.c, self.r = (low + high) / 2, (high - low) / 2

    def margins(self, last: nn.Linear, label: Tensor) -> Tensor:
        """Greatest value of ``y_j - y_label`` ``[B, classes]``; 0 for the label itself."""
        weight = last.weight.unsqueeze(0) - last.weight[label].unsqueeze(1)
        bias = last.bias.unsqueeze(0) - last.bias[label].unsqueeze(1)
        worst = torch.einsum("bji,bi->bj", weight, self.c) + torch.einsum("bji,bi->bj", weight.abs(), self.r)
        return (worst + bias).scatter(1, label.unsqueeze(1), 0.0)


@dataclass(frozen=True, slots=True)
class Trained:
    """How a training ended: shares of the last batches classified rightly, certified by intervals, channels awake."""

    right: float
    certified: float
    awake: float
    steps: int
    seconds: float


def train(net: nn.Sequential, size: Size, seed: int, device: torch.device) -> Trained:
    """A short training: first of the values alone, then the radius and the weight of the certified part grow.

    One kind of GPU gives the same weights each time: a question is looked for anew on each machine.
    """
    torch.backends.cudnn.deterministic, before = True, torch.backends.cudnn.deterministic
    try:
        return _train(net, size, seed, device)
    finally:
        torch.backends.cudnn.deterministic = before


def _train(net: nn.Sequential, size: Size, seed: int, device: torch.device) -> Trained:
    began = time.perf_counter()
    net.to(device).train()
    *body, last = net
    assert isinstance(last, nn.Linear)
    images = patterns(size, seed).to(device)
    gen = torch.Generator(device).manual_seed(seed + 2)
    adam = torch.optim.Adam(_groups(net))
    right, certified, awake = [], [], []
    for step in range(size.steps):
        grown = min(1.0, max(0.0, (step / size.steps - PLAIN) / GROWS))
        for group in adam.param_groups:
            group["lr"] = group["part"] * size.rate * min(1.0, 4 * (1 - step / size.steps), 8 * (step + 1) / size.steps)
        label = torch.randint(0, size.classes, (size.batch,), generator=gen, device=device)
        other = torch.randint(0, size.classes, (size.batch,), generator=gen, device=device)
        share = MOST_MIXED * torch.rand(size.batch, 1, 1, 1, generator=gen, device=device)
        noise = torch.rand(size.batch, 3, size.image, size.image, generator=gen, device=device)
        x = (torch.lerp(images[label], images[other], share) + NOISE * (noise - 0.5)).clamp(0, 1)
        values = Intervals(x, size.eps * grown)
        clean = net(x)
        for module in body:
            values.map(module)
        worst = values.margins(last, label)
        loss = functional.cross_entropy(clean, label) * (1 - 0.5 * grown)
        loss = loss + 0.5 * grown * functional.cross_entropy(worst, label)
        loss = loss + size.kink * grown * torch.stack(values.kinks).sum() + IDLE * torch.stack(values.idle).sum()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 8.0)
        adam.step()
        right.append((clean.argmax(1) == label).float().mean())
        certified.append((worst.amax(1) <= 0).float().mean())
        awake.append(torch.stack(values.awake).mean())
        if grown == 1.0 and step % 10 == 9 and _last(certified) > 0.99:
            break
    net.cpu().eval()
    seconds = time.perf_counter() - began
    return Trained(_last(right), _last(certified), _last(awake), step + 1, round(seconds, 1))


def _groups(net: nn.Module) -> list[dict[str, Any]]:
    """Weights with their ``part`` of the rate: 1 / inputs, so that a step's effect does not grow with the width.

    (Yang and Hu 2021: Adam moves every weight alike, and a wide layer adds up more of them.)
    """
    groups = []
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert module.bias is not None
            groups.append({"params": [module.weight], "part": 1 / module.weight[0].numel()})
            groups.append({"params": [module.bias], "part": BIAS_PART})
    return groups


def _last(shares: list[Tensor]) -> float:
    return float(torch.stack(shares[-5:]).mean())


def export(net: nn.Sequential, size: Size, path: Path) -> None:
    """Writes the network, for one image ``X`` ``[1, 3, image, image]``, as one ONNX file.

    Node by node: torch's own exporter takes longer than the training of a small network.
    """
    written = _Written()
    at = "X"
    for i, module in enumerate(net):
        at = written.module(module, at, str(i))
    written.add("Identity", at, name="Y")
    written.save(path, (1, 3, size.image, size.image), (1, size.classes))


class _Written:
    """The nodes and weights of an ONNX file."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def module(self, module: nn.Module, at: str, name: str) -> str:
        """Appends a module that reads ``at``; the name of what it gives."""
        if isinstance(module, nn.Conv2d):
            pads = [int(side) for side in module.padding] * 2
            return self.add("Conv", at, *self._parameters(module, name), name=name, strides=list(module.stride),
                            pads=pads, kernel_shape=list(module.kernel_size))  # fmt: skip
        if isinstance(module, nn.Linear):
            return self.add("Gemm", at, *self._parameters(module, name), name=name, transB=1)
        if isinstance(module, nn.Flatten):
            return self.add("Flatten", at, name=name)
        if isinstance(module, nn.ReLU):
            return self.add("Relu", at, name=name)
        if isinstance(module, nn.Identity):
            return at
        assert isinstance(module, Block)
        inner = self.add("Relu", self.module(module.first, at, f"{name}.first"), name=f"{name}.relu")
        branch = self.module(module.second, inner, f"{name}.second")
        both = self.add("Add", branch, self.module(module.shortcut, at, f"{name}.shortcut"), name=f"{name}.sum")
        return self.add("Relu", both, name=name)

    def add(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Appends one node."""
        from onnx import helper

        self._nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def _parameters(self, module: nn.Conv2d | nn.Linear, name: str) -> tuple[str, str]:
        from onnx import numpy_helper

        names = (f"{name}.weight", f"{name}.bias")
        for key, value in zip(names, (module.weight, module.bias), strict=True):
            assert value is not None
            self._weights.append(numpy_helper.from_array(value.detach().cpu().numpy(), key))
        return names

    def save(self, path: Path, shape_in: tuple[int, ...], shape_out: tuple[int, ...]) -> None:
        """Checks and writes the file."""
        import onnx
        from onnx import helper

        ends = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in (("X", shape_in), ("Y", shape_out))
        ]
        graph = helper.make_graph(self._nodes, "resnet", ends[:1], ends[1:], self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))


def weight_bytes(net: nn.Module) -> int:
    """Bytes of weights and biases."""
    return sum(parameter.numel() * parameter.element_size() for parameter in net.parameters())


def layers(net: nn.Module) -> str:
    """How many there are of each kind."""
    counts = {kind: sum(isinstance(m, of) for m in net.modules()) for kind, of in _KINDS.items()}
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


_KINDS = {"convolutions": nn.Conv2d, "linear": nn.Linear, "residual blocks": Block}
