"""The matching losses, pure functions of the features of two batches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from itra_hf.losses.form import Form
from itra_hf.losses.strips import mmd

LABEL_KERNELS = ("delta", "linear", "gaussian")


def marginal_mmd(
    source: Tensor, target: Tensor, *, bandwidth: float | None = None, num_bandwidths: int = 5, unbiased: bool = False
) -> Tensor:
    r"""Return the squared MMD between two batches of features, a scalar.

    .. math:: \sum_{ij} w_i w_j \, k(z_i, z_j), \qquad
        k(a, b) = \frac1K \sum_{q=-\lfloor K/2 \rfloor}^{\lfloor K/2 \rfloor}
        \exp\!\left(-\frac{|a - b|^2}{2^q\,\text{bandwidth}}\right)

    over the rows of Z = [source; target], with w = 1/n on source rows and -1/m on target rows.
    The unbiased form leaves out i = j and divides by n(n-1), m(m-1) and nm.

    The value is float64 for float64 features, else float32, whatever autocast says. The gradient has the dtype of the
    features, and cannot be differentiated again. An empty side gives 0 with zero gradient (unbiased: a side with fewer
    than two rows). So do features that are all equal. NaN features give NaN.

    Args:
        source: features, `[n, d]`, floats.
        target: features, `[m, d]`, floats.
        bandwidth: squared feature units, above 0. None (default): the mean squared distance over all pairs of different
            rows of Z, detached. With a given bandwidth, the loss is computed in float64. On MPS it is computed in
            float32: there the bandwidth must exceed a millionth of the largest squared distance.
        num_bandwidths: K, odd, at most 15; 5 by default.
        unbiased: U-statistic; its mean is 0 for two batches of one distribution. The default, the V-statistic, is never
            negative.

    Raises:
        ValueError: shapes that do not fit, features that are not floats, an option out of range.
        RuntimeError: in backward with create_graph=True, and under `torch.func`.

    Example:
        >>> import torch
        >>> source, target = torch.tensor([[0.0]]), torch.tensor([[1.0]])
        >>> loss = marginal_mmd(source, target, bandwidth=1.0, num_bandwidths=1)
        >>> print(f"{loss:.4f}")  # k(0, 0) + k(1, 1) - 2 k(0, 1) = 2 - 2 / e
        1.2642

    Source: Gretton et al., A Kernel Two-Sample Test, JMLR 2012; as a matching loss Li, Li, Pan, Qiang, Zhu, AAAI 2023,
    arXiv 2211.13332.
    """
    form = Form(bandwidth=bandwidth, num_bandwidths=num_bandwidths, unbiased=unbiased)
    return _apply(source, target, None, form)


def class_conditional_mmd(
    source: Tensor,
    target: Tensor,
    source_labels: Tensor,
    target_labels: Tensor,
    *,
    bandwidth: float | None = None,
    num_bandwidths: int = 5,
    unbiased: bool = False,
) -> Tensor:
    r"""Return the squared MMD within each class, averaged over the classes, a scalar.

    .. math:: \frac{1}{|C|} \sum_{c \in C} \text{MMD}^2(
        \{\text{source} : y = c\}, \{\text{target} : y = c\})

    C holds the classes with at least one row in source and one in target (unbiased: two and two). The bandwidth is one
    for all classes: the mean rule looks at all rows of both batches. No class in common gives 0 with zero gradient.

    Args:
        source: features, `[n, d]`, floats.
        target: features, `[m, d]`, floats.
        source_labels: classes, `[n]`, integers or bools.
        target_labels: classes, `[m]`, integers or bools.
        bandwidth: as in `marginal_mmd`, and so the other options, precision, source and errors.
        num_bandwidths: 5 by default.
        unbiased: U-statistics; False by default.

    Raises:
        ValueError: labels that are not one whole number per row; for vectors and numbers there is `joint_mmd`.

    Example:
        >>> import torch
        >>> source, target = torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [7.0]])
        >>> loss = class_conditional_mmd(source, target, torch.tensor([0, 1]),
        ...                              torch.tensor([0, 2]), bandwidth=1.0, num_bandwidths=1)
        >>> print(f"{loss:.4f}")  # class 0 alone: 2 - 2 / e
        1.2642
    """
    form = Form("delta", by_class=True, bandwidth=bandwidth, num_bandwidths=num_bandwidths, unbiased=unbiased)
    labels = _joined(source, target, source_labels, target_labels)
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"class labels must be whole numbers of shape [rows], got {labels.dtype} of shape "
            f"{tuple(source_labels.shape)}; for multi-label, soft or regression targets use joint_mmd"
        )
    return _apply(source, target, labels, form)


def joint_mmd(
    source: Tensor,
    target: Tensor,
    source_labels: Tensor,
    target_labels: Tensor,
    *,
    bandwidth: float | None = None,
    num_bandwidths: int = 5,
    unbiased: bool = False,
    label_kernel: str | None = None,
) -> Tensor:
    r"""Return the squared MMD between the pairs (feature, label) of two batches, a scalar.

    .. math:: \sum_{ij} w_i w_j \, k(z_i, z_j) \, l(y_i, y_j)

    with Z, w and k of `marginal_mmd`. The label kernel l is

    - ``delta``: 1 where the labels are equal, else 0. For class labels.
    - ``linear``: the inner product of the labels. For multi-label vectors and soft labels.
    - ``gaussian``: exp(-\|y - y'\|^2 / b), b the mean squared distance over all pairs of different labels of both
      batches. For regression targets.

    Args:
        source: features, `[n, d]`, floats.
        target: features, `[m, d]`, floats.
        source_labels: `[n]` or `[n, C]`; they get no gradient.
        target_labels: `[m]` or `[m, C]`.
        bandwidth: as in `marginal_mmd`, and so the other options, precision, source and errors.
        num_bandwidths: 5 by default.
        unbiased: U-statistic; False by default.
        label_kernel: one of the names above. None (default): linear for `[rows, C]` with C > 1, else delta for integers
            and bools and gaussian for floats.

    Raises:
        ValueError: labels that do not fit the rows or the kernel, or a kernel of another name.

    Example:
        >>> import torch
        >>> features, score = torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 2.0])
        >>> print(f"{joint_mmd(features, features, score, score.flip(0)):.4f}")  # pairs differ
        0.5539
        >>> print(f"{joint_mmd(features, features, score, score):.4f}")
        0.0000
    """
    labels = _joined(source, target, source_labels, target_labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    kind = label_kernel or ("linear" if labels.ndim == 2 else "gaussian" if labels.is_floating_point() else "delta")
    if kind not in LABEL_KERNELS or (kind == "delta" and labels.ndim == 2):
        raise ValueError(
            f"label_kernel {kind!r} with labels of shape {tuple(source_labels.shape)}: use one of "
            f"{LABEL_KERNELS}, and 'delta' only with one label per row"
        )
    form = Form(kind, bandwidth=bandwidth, num_bandwidths=num_bandwidths, unbiased=unbiased)
    return _apply(source, target, labels, form)


def _joined(source: Tensor, target: Tensor, source_labels: Tensor, target_labels: Tensor) -> Tensor:
    """Return the labels of both batches, one (a number or a vector) for each row."""
    rows, shapes = (len(source), len(target)), f"{tuple(source_labels.shape)} and {tuple(target_labels.shape)}"
    if min(source_labels.ndim, target_labels.ndim) < 1 or (len(source_labels), len(target_labels)) != rows:
        raise ValueError(f"one label per row needed: {rows[0]} and {rows[1]} rows, labels of shape {shapes}")
    if source_labels.shape[1:] != target_labels.shape[1:] or source_labels.ndim > 2:
        raise ValueError(f"labels must be [rows] or [rows, C] and alike on both sides, got {shapes}")
    return torch.cat([source_labels, target_labels]).detach().to(source.device)


def _apply(source: Tensor, target: Tensor, labels: Tensor | None, form: Form) -> Tensor:
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        shapes = f"source {tuple(source.shape)} and target {tuple(target.shape)}"
        raise ValueError(f"features must be [n, d] and [m, d] of one width d, got {shapes}")
    if not (source.is_floating_point() and target.is_floating_point()):
        raise ValueError(f"features must be floats, got {source.dtype} and {target.dtype}")
    try:
        return _mmd(source, target, labels, form)
    except RuntimeError as error:
        if "setup_context" not in str(error):  # torch's word for it
            raise
        raise RuntimeError("the MMD losses do not support torch.func: use backward() or torch.autograd.grad") from error


class _MMD(torch.autograd.Function):
    """The squared MMD; the forward pass computes its gradient, too."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, target: Tensor, labels: Tensor | None, form: Form) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
        sign = torch.ones(len(source) + len(target), dtype=dtype, device=source.device)
        sign[len(source) :] = -1
        value, gradient, _ = mmd(torch.cat([source.to(dtype), target.to(dtype)]), sign, labels, form)
        ctx.save_for_backward(gradient)
        ctx.sizes = len(source), len(target)
        return value

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("the MMD losses have no second derivative: call backward without create_graph=True")
        (gradient,) = ctx.saved_tensors
        return *(gradient * scales[0]).split(ctx.sizes), None, None


_mmd: Callable[..., Tensor] = torch.compiler.disable(_MMD.apply)  # a compiled caller breaks its graph here
