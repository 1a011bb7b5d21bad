"""Whether a batch takes one launch on a GPU."""

import warnings

import torch
from torch import Tensor

from itra_hf.losses.form import Form, Matched

MOST_ROWS = 128
_failed: set[int] = set()  # numbers of rows, rounded up, for which the kernel could not be had


def in_one_launch(rows: Tensor, sign: Tensor | None, labels: Tensor | None, form: Form) -> Matched | None:
    """Return what `mmd` returns, or None where the CUDA kernel does not serve."""
    is_served = rows.is_cuda and rows.dtype != torch.float64 and form.bandwidth is None
    return launched(rows, sign, labels, form) if is_served and 0 < len(rows) <= MOST_ROWS else None


def launched(rows: Tensor, sign: Tensor | None, labels: Tensor | None, form: Form) -> Matched | None:
    """Launch the kernel; None, and once a warning, where Triton is not there or the kernel does not fit the GPU."""
    size = 1 << (len(rows) - 1).bit_length()
    if size in _failed:
        return None
    if labels is not None and form.label_kernel != "delta":
        labels = as_vectors(labels, form.label_kernel).float()
    elif labels is not None and not labels.is_floating_point():
        labels = labels.long()
    try:
        from itra_hf.losses.kernel import one_launch  # Triton is no requirement

        options = (form.label_kernel, form.by_class, form.num_bandwidths, form.unbiased)
        return Matched(*one_launch(rows, sign, labels, *options))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler has many
        if not _failed:
            warnings.warn(
                f"the matching loss goes without its CUDA kernel, which costs some launches a step: {error}",
                stacklevel=2,
            )
        _failed.add(size)
        return None


def as_vectors(labels: Tensor, name: str | None) -> Tensor:
    """Return labels as `[N, C]`; for the Gaussian kernel less the first one, so that an offset costs no digit."""
    y = labels.unsqueeze(-1).flatten(1)
    if name == "gaussian":
        y = y.to(torch.promote_types(y.dtype, torch.float32)) if y.is_floating_point() else y.long()
        y = y - y[:1]
    return y if y.dtype == torch.float64 else y.float()
