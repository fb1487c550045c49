"""Modules around a `BoundedModule` or a model that training scripts of upstream import."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from auto_LiRPA.bounded_module import BoundedModule
from auto_LiRPA.errors import UserError


class BoundDataParallel(nn.Module):
    """The calls of `torch.nn.DataParallel` on one device: everything is passed through.

    Several devices in one process are refused; `torchrun` and the `parallel` settings are the way to more.
    """

    def __init__(self, module: BoundedModule, device_ids: list[int] | None = None) -> None:
        super().__init__()
        if device_ids is not None and len(device_ids) > 1:
            raise UserError(f"BoundDataParallel: device_ids = {device_ids}: one device a process; use torchrun")
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def compute_bounds(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own."""
        return self.module.compute_bounds(*args, **kwargs)


class CrossEntropyWrapper(nn.Module):
    """The loss as a part of the network. Not supported yet: it needs the labels as a second input."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UserError(f"{type(self).__name__}: not supported yet; bound get_spec_matrix's rows instead")


class CrossEntropyWrapperMultiInput(CrossEntropyWrapper):
    """The same for several inputs. Not supported yet."""
