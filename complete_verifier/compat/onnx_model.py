"""An ONNX file as the torch module that hooks are shown: it runs, and its parts carry the names of its operators."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from auto_LiRPA.graph.module import OnnxModule, load_onnx
from auto_LiRPA.graph.onnx_file import load_proto

# Hooks ask `isinstance(part, nn.Conv2d)` or look at the type's name.
_BASES: dict[str, type[nn.Module]] = {
    "Conv": nn.Conv2d, "ConvTranspose": nn.ConvTranspose2d, "Gemm": nn.Linear, "Relu": nn.ReLU, "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh, "LeakyRelu": nn.LeakyReLU, "Softmax": nn.Softmax, "MaxPool": nn.MaxPool2d, "Flatten": nn.Flatten,
    "AveragePool": nn.AvgPool2d, "BatchNormalization": nn.BatchNorm2d, "Dropout": nn.Dropout,
}  # fmt: skip


class OnnxModel(nn.Module):
    """Runs the file's network; ``modules()`` yields one part per ONNX node, in order, named after its operator."""

    def __init__(self, path: Path, input_shape: tuple[int, ...] | None) -> None:
        super().__init__()
        self.network: OnnxModule = load_onnx(path, input_shape=input_shape)
        for number, node in enumerate(load_proto(path).graph.node):
            self.add_module(f"{node.op_type}_{number}", _part(node.op_type))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        return y


def _part(op_type: str) -> nn.Module:
    """A module of that type name, without numbers of its own."""
    base = _BASES.get(op_type, nn.Module)
    name = op_type if base is nn.Module else base.__name__
    # made without the base's own constructor, which would ask for sizes and make weights
    kind: type[nn.Module] = type(name, (base,), {"__init__": nn.Module.__init__, "extra_repr": lambda self: ""})
    return kind()
