"""Operator classes under the names that users of upstream import: to ask `isinstance(net['x'].op, BoundRelu)`."""

from __future__ import annotations

from auto_LiRPA.operators.activation import Relu as BoundRelu
from auto_LiRPA.operators.arithmetic import Add as BoundAdd
from auto_LiRPA.operators.arithmetic import Sub as BoundSub
from auto_LiRPA.operators.base import Input as BoundInput
from auto_LiRPA.operators.base import NonlinearOperator as BoundActivation
from auto_LiRPA.operators.base import Operator as Bound
from auto_LiRPA.operators.conv import Conv as BoundConv
from auto_LiRPA.operators.linear import Linear as BoundLinear
from auto_LiRPA.operators.shape import Concat as BoundConcat
from auto_LiRPA.operators.shape import Reshape as BoundReshape
from auto_LiRPA.operators.shape import Transpose as BoundTranspose
from auto_LiRPA.values import Interval

__all__ = [
    "Bound",
    "BoundActivation",
    "BoundAdd",
    "BoundConcat",
    "BoundConv",
    "BoundInput",
    "BoundLinear",
    "BoundRelu",
    "BoundReshape",
    "BoundSub",
    "BoundTranspose",
    "Interval",
]
