"""A tensor that knows how it may be perturbed."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from auto_LiRPA.errors import UserError
from auto_LiRPA.perturbations import Perturbation


class BoundedTensor(Tensor):
    """``x`` with its perturbation ``ptb``. It shares x's memory and gradients; what torch computes from it is plain."""

    ptb: Perturbation | None

    # results of torch operations are ordinary tensors: a sum of bounded inputs has no perturbation of its own
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, x: Tensor, ptb: Perturbation | None = None) -> BoundedTensor:
        bounded = x.as_subclass(cls)
        # as_subclass hands back x itself where x is one of ours already: that one's perturbation must stay
        if bounded is x:
            bounded = x.as_subclass(Tensor).as_subclass(cls)
        bounded.ptb = ptb
        return bounded

    def __init__(self, x: Tensor, ptb: Perturbation | None = None) -> None:
        super().__init__()

    def plain(self) -> Tensor:
        """The values as an ordinary tensor, gradients included."""
        return self.as_subclass(Tensor)

    def to(self, *args: Any, **kwargs: Any) -> BoundedTensor:
        """Values and perturbation moved or cast together."""
        ptb = None if self.ptb is None else self.ptb.to(*args, **kwargs)
        return BoundedTensor(self.plain().to(*args, **kwargs), ptb)

    def cpu(self, *args: Any, **kwargs: Any) -> BoundedTensor:
        return self.to("cpu")

    def cuda(self, device: Any = None, *args: Any, **kwargs: Any) -> BoundedTensor:
        return self.to("cuda" if device is None else device)

    def float(self, *args: Any, **kwargs: Any) -> BoundedTensor:
        return self.to(torch.float32)

    def double(self, *args: Any, **kwargs: Any) -> BoundedTensor:
        return self.to(torch.float64)

    def clone(self, *args: Any, **kwargs: Any) -> BoundedTensor:
        """A copy of the values and of the perturbation."""
        ptb = None if self.ptb is None else self.ptb.clone()
        return BoundedTensor(self.plain().clone(*args, **kwargs), ptb)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"<BoundedTensor: {self.plain()!r}, {self.ptb}>"


class BoundedParameter(nn.Parameter):
    """A perturbed weight. Not supported yet."""

    def __new__(cls, *args: object, **kwargs: object) -> NoReturn:
        raise UserError("BoundedParameter: perturbed weights are not supported yet; perturb the input only")
