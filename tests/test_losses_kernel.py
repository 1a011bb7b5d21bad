"""The CUDA kernel against the float64 formulas, in Triton's interpreter on a CPU; on_gpu.py has it on a GPU."""

import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from itra_hf.losses import Form, launch, mmd

HERE = Path(__file__).parent
FORMS = [
    Form(),
    Form("delta", by_class=True),
    Form("delta"),
    Form("linear"),
    Form("gaussian"),
    Form(num_bandwidths=1),
    Form("delta", by_class=True, num_bandwidths=15),
    *(
        Form(kernel, by_class, unbiased=True)
        for kernel, by_class in ((None, False), ("delta", True), ("gaussian", False))
    ),
]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def batch(form, n, d, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(n + d)
    rows = (2 * torch.randn(n, d, generator=generator) + 3).to(dtype)
    labels = {
        None: None,
        "delta": torch.randint(-1, 4, (n,), generator=generator),
        "linear": torch.rand(n, 19, generator=generator),
        "gaussian": 101325 + torch.rand(n, generator=generator, dtype=torch.float64),
    }[form.label_kernel]
    if form.label_kernel == "delta":
        labels[labels == -1] = -100
    sign = torch.where(torch.rand(n, generator=generator) < 0.4, 1.0, -1.0)
    return [None if part is None else part.to(device) for part in (rows, sign, labels)]


def compare(device="cpu"):
    """Value, gradient and spread beside float64, over forms, sizes, sides and dtypes."""
    for form in FORMS:
        tolerance = 1e-6 if form.num_bandwidths <= 5 else 5e-5
        for n, d in ((1, 3), (2, 5), (9, 70), (33, 32), (64, 100), (128, 33)):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                rows, sign, labels = batch(form, n, d, dtype, device)
                for side in (sign, None) if form.label_kernel == "delta" else (sign,):
                    matched = launch.launched(rows, side, labels, form)
                    assert {part.dtype for part in matched} == {torch.float32}
                    exact = mmd(rows.double().cpu(), *(None if x is None else x.cpu() for x in (side, labels)), form)
                    for ours, theirs in zip(matched, exact, strict=True):
                        error = (ours.double().cpu() - theirs).norm()
                        assert error <= tolerance * (theirs.norm() if theirs.ndim else theirs.norm().clamp(min=1)), form


def degenerate(device="cpu"):
    """Values and gradients where nothing can be matched, and where something is no number."""
    form = Form("delta", by_class=True)
    rows, _, labels = batch(form, 8, 40, device=device)
    same = torch.full_like(rows, 1.7)
    single = torch.arange(8, device=device)
    for features, classes in ((same, labels), (rows, single), (rows, torch.full_like(labels, -100))):
        value, gradient, _ = launch.launched(features, None, classes, form)
        assert abs(value) < 1e-6
        assert not gradient.any()
    by_dtype = [
        launch.launched(rows, None, (labels % 2).to(dtype), form) for dtype in (torch.uint8, torch.bool, torch.int64)
    ]
    assert torch.equal(by_dtype[0].gradient, by_dtype[2].gradient)
    assert torch.equal(by_dtype[1].gradient, by_dtype[2].gradient)
    wide = torch.cat([rows * 0.01, torch.full((8, 1), 1e7 / 3, device=device)], 1)
    narrow = launch.launched(rows * 0.01, None, labels, form)
    assert float(launch.launched(wide, None, labels, form).value) == pytest.approx(float(narrow.value), rel=1e-4)
    tiny = launch.launched(rows * 1e-22, None, labels, form)
    assert float(tiny.value) == pytest.approx(float(narrow.value), rel=1e-4)
    for bad in (float("nan"), float("inf")):
        broken = rows.clone()
        broken[1, 2] = bad
        value, gradient, _ = launch.launched(broken, None, labels.fill_(0), form)
        assert value.isnan()
        assert gradient.isnan().any()


@needs_triton
def test_in_the_interpreter_the_kernel_is_the_formula():
    """In a process of its own, since Triton decides when it is imported whether it interprets."""
    code = "import test_losses_kernel as t; t.degenerate(); t.compare()"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command = [sys.executable, "-W", "error::UserWarning:itra_hf", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr[-3000:]


@needs_triton
@pytest.mark.parametrize(
    ("architecture", "rows", "kernel"), [(80, 128, "gaussian"), (90, 128, "delta"), (90, 40, "delta")]
)
def test_the_kernel_compiles_for_a_gpu_and_fits_its_shared_memory(architecture, rows, kernel):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from itra_hf.losses.kernel import _mmd, sizes

    pointers = dict.fromkeys(("z", "signs", "value", "gradient", "spread"), "*fp32")
    pointers |= {"labels": "*i64" if kernel == "delta" else "*fp32"}
    fixed = {"label_kernel": kernel, "by_class": kernel == "delta", "dealt": kernel == "delta", "unbiased": False}
    layout = sizes(rows)
    fixed |= {"k": 5, "block": layout["block"], "step": layout["step"]}
    signature = {name: pointers.get(name, "constexpr" if name in fixed else "i32") for name in _mmd.arg_names}
    source = ASTSource(fn=_mmd, signature=signature, constexprs=fixed)
    compiled = compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": layout["num_warps"]})
    assert compiled.metadata.shared <= 99 * 1024  # what a program may have on the GPUs of most desks


def test_without_the_kernel_there_is_one_warning_and_the_strips(monkeypatch):
    monkeypatch.setattr(launch, "_failed", set())
    monkeypatch.setitem(sys.modules, "itra_hf.losses.kernel", None)  # as where Triton cannot be imported
    rows, sign, labels = batch(Form("delta"), 20, 4)
    with pytest.warns(UserWarning, match="without its CUDA kernel"):
        assert launch.launched(rows, sign, labels, Form("delta")) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert launch.launched(rows, sign, labels, Form("delta")) is None
        assert launch.launched(rows[:9], sign[:9], labels[:9], Form("delta")) is None
