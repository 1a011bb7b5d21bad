"""Forward passes that leave no trace: modes, buffers and random states are as before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class RandomState:
    """The state of every random number generator that a forward pass may draw from."""

    python: Any
    numpy: Any
    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def capture(cls, device: torch.device) -> "RandomState":
        """The present state."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self, device: torch.device) -> None:
        """Make it the present state again."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Afterwards, every random number generator has the state from before."""
    state = RandomState.capture(device)
    try:
        yield
    finally:
        state.restore(device)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards, every module's mode and every random number generator are as before."""
    modes = [(module, module.training) for module in model.modules()]
    with kept_random_state(next(model.parameters()).device):
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Afterwards, every buffer is the same tensor with the same values, even one that a module replaced."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, values in buffers:
                with suppress(RuntimeError):  # one that nobody can write to, as an expanded one, is as before
                    buffer.copy_(values)
                setattr(module, name, buffer)
