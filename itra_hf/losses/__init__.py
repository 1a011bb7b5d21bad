"""Matching losses: pure functions of tensors."""

from collections.abc import Callable

from torch import Tensor

from itra_hf.losses.form import NO_CLASS, Form, Matched
from itra_hf.losses.functions import class_conditional_mmd, joint_mmd, marginal_mmd
from itra_hf.losses.strips import mmd

LOSSES: dict[str, Callable[..., Tensor]] = {
    "marginal": marginal_mmd,
    "class_conditional": class_conditional_mmd,
    "joint": joint_mmd,
}

__all__ = ["LOSSES", "NO_CLASS", "Form", "Matched", "class_conditional_mmd", "joint_mmd", "marginal_mmd", "mmd"]
