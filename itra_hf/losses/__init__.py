"""Matching losses: pure functions of tensors."""

from collections.abc import Callable

from torch import Tensor

from itra_hf.losses.class_conditional import class_conditional_mmd
from itra_hf.losses.joint import joint_mmd
from itra_hf.losses.marginal import marginal_mmd

LOSSES: dict[str, Callable[..., Tensor]] = {
    "marginal": marginal_mmd,
    "class_conditional": class_conditional_mmd,
    "joint": joint_mmd,
}

__all__ = ["LOSSES", "class_conditional_mmd", "joint_mmd", "marginal_mmd"]
