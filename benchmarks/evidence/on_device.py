"""Images that lie on the device, where batches are made of them, so that a small network on a GPU does not wait."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

PADDING = 4  # pixels, of a random crop


class DeviceImages:
    """All images of a data set, and collators that look them up.

    Args:
        images: `[n, height, width, 3]` of bytes. The network gets them with mean 0 and variance 1 in each channel.
    """

    def __init__(self, images: np.ndarray) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.images = torch.from_numpy(images).to(self.device).movedim(-1, 1)
        sample = self.images[:: max(1, len(images) // 5000)].float()
        self.mean, self.std = (each.view(1, 3, 1, 1) for each in (sample.mean((0, 2, 3)), sample.std((0, 2, 3))))

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The images at the rows' `index`, as they are."""
        index, labels = (torch.tensor([row[name] for row in rows]).to(self.device) for name in ("index", "labels"))
        return {"pixel_values": (self.images[index].float() - self.mean) / self.std, "labels": labels}

    def augment(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The same, cropped out of a padding of four pixels and flipped at random."""
        batch = self.collate(rows)
        pixels = functional.pad(batch["pixel_values"], (PADDING,) * 4)
        n, side = len(rows), batch["pixel_values"].shape[-1]
        corner = torch.randint(2 * PADDING + 1, (2, n, 1))
        down, across = corner[0] + torch.arange(side), corner[1] + torch.arange(side)
        across = torch.where(torch.rand(n, 1) < 0.5, across.flip(1), across)
        row, down, across = (
            each.to(self.device) for each in (torch.arange(n)[:, None, None], down[:, :, None], across[:, None])
        )
        return batch | {"pixel_values": pixels[row, :, down, across].movedim(-1, 1)}
