"""Draw the figures of the first page and of the concepts page with the package itself, light and dark.

    python docs/figures.py

Every curve is computed here: by the losses, by the guards, or by training runs on scikit-learn's digits.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from itra_hf import ClassPairedSampler, ITRAConfig, ITRATrainer
from itra_hf.diagnostics import compactness
from itra_hf.losses import marginal_mmd
from itra_hf.pairing import split_pair
from itra_hf.report.drawing import COLOURS, THEMES, Picture, curve, finish
from itra_hf.report.maps import principal_axes
from itra_hf.step import ramp

FOLDER = Path(__file__).parent / "figures"
STEPS, WEIGHT = 300, 3.0


def pair() -> Picture:
    """Two batches of eight rows, shuffled and paired by class, and the halves that `split_pair` makes of them."""
    labels = torch.tensor([0, 1, 2, 3] * 6)
    orders = {
        "random order": torch.randperm(len(labels), generator=torch.Generator().manual_seed(3)),
        "ClassPairedSampler": torch.tensor(list(ClassPairedSampler(labels, seed=1))),
    }

    def draw(figure: Figure) -> None:
        for axes, (name, order) in zip(figure.subplots(2, 1), orders.items(), strict=True):
            batch = torch.arange(8)
            for half, (side, rows) in enumerate(zip("st", split_pair(batch), strict=True)):
                axes.text(9.0, -half, f"half {side}", va="center", ha="left")
                for place, row in enumerate(rows.tolist()):
                    label = int(labels[order[row]])
                    axes.scatter(2 * place + 0.7, -half, s=330, color=COLOURS[label], marker="s")
                    axes.text(2 * place + 0.7, -half, "ABCD"[label], color="white", ha="center", va="center")
                    axes.text(2 * place + 0.1, -half, str(row), ha="center", va="center", fontsize=7.5)
            axes.set(title=name, xlim=(-0.4, 10.6), ylim=(-1.6, 0.6))
            axes.title.set_fontsize(9.5)
            axes.axis("off")

    return Picture("pair", "", "", "", draw, height=2.6)


def kernel() -> Picture:
    """The kernel over the distance, and how hard it pulls: both from the loss of two single rows."""
    distances = torch.linspace(0, 4, 201)
    values: dict[str, tuple[list[float], list[float]]] = {}
    for count, name in ((1, "one bandwidth"), (5, "five bandwidths")):
        heights, pulls = [], []
        for distance in distances:
            row = torch.zeros(1, 1, requires_grad=True)
            loss = marginal_mmd(row, distance.view(1, 1), bandwidth=1.0, num_bandwidths=count)  # 2 - 2 k
            loss.backward()
            heights.append(1 - loss.item() / 2)
            pulls.append(row.grad.abs().item() / 2)
        values[name] = heights, pulls

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True)
        for name, (heights, pulls) in values.items():
            above.plot(distances, heights, label=name)
            below.plot(distances, pulls)
        above.set(ylabel="kernel k")
        below.set(
            ylabel="pull |dk / d distance|", xlabel="distance, in units of the root of the bandwidth", xlim=(0, 4)
        )
        above.legend(fontsize=8.5)

    return Picture("kernel", "", "", "", draw, height=4.0)


def estimators() -> Picture:
    """Both estimators on pairs of batches drawn from one distribution, against the size of a half."""
    generator = torch.Generator().manual_seed(0)
    sizes = [2, 4, 8, 16, 32, 64]
    means: dict[bool, list[float]] = {False: [], True: []}
    spreads: dict[bool, list[float]] = {False: [], True: []}
    expected = []
    for size in sizes:
        draws = [torch.randn(2, size, 8, generator=generator) for _ in range(400)]
        kernels = []
        for unbiased in (False, True):
            options: Any = {"bandwidth": 16.0, "unbiased": unbiased}
            found = torch.stack([marginal_mmd(source, target, **options) for source, target in draws])
            means[unbiased].append(found.mean().item())
            spreads[unbiased].append(found.std().item())
        for source, target in draws:  # of two single rows: 2 - 2 k
            kernels.append(1 - marginal_mmd(source[:1], target[:1], bandwidth=16.0) / 2)
        expected.append(2 / size * (1 - torch.stack(kernels).mean().item()))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for unbiased, name in ((False, "biased"), (True, "unbiased")):
            middle, spread = np.array(means[unbiased]), np.array(spreads[unbiased])
            axes.plot(sizes, middle, "o-", markersize=4, label=f"{name}, mean of 400 pairs")
            axes.fill_between(sizes, middle - spread, middle + spread, alpha=0.18, linewidth=0)
        axes.plot(sizes, expected, "--", color=COLOURS[3], label="(2 / n) (1 - E k)")
        axes.axhline(0, color=COLOURS[7], linewidth=0.8)
        axes.set(xlabel="n, rows in each half", ylabel="MMD²", xscale="log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.legend(fontsize=8.5)

    return Picture("estimators", "", "", "", draw, height=3.4)


class Network(nn.Module):
    """A small network on the digits, with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.body(x))
        return {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Scatter(TrainerCallback):
    """Notes the scatter of the features of all rows as a run goes on."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.steps, self.values = x, list[int](), list[float]()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % 5 == 0 or state.global_step == 1:
            with torch.no_grad():
                scatter = model.body(self.x).var(0, correction=0).sum().sqrt().item()
            self.steps.append(state.global_step)
            self.values.append(max(scatter, 1e-9))


def digits(order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Images and labels of scikit-learn's digits, in an order of choice."""
    data = load_digits()
    x, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    return (x, labels) if order is None else (x[order], labels[order])


def fit(cls: type[Trainer], network: type[Network], x: Tensor, labels: Tensor, **options: Any) -> Trainer:
    """A run on these rows; `callbacks` go to the trainer, all other options are arguments."""
    rows = [{"x": row, "labels": int(label)} for row, label in zip(x, labels, strict=True)]
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "log_level": "error"}
    callbacks = options.pop("callbacks", None)
    with tempfile.TemporaryDirectory() as folder:
        args = ITRAConfig(folder, per_device_train_batch_size=32, **quiet, **options)
        set_seed(0)
        trainer = cls(network(), args, train_dataset=rows, callbacks=callbacks)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer


def train(cls: type[Trainer] = ITRATrainer, **options: Any) -> tuple[Scatter, list[dict[str, Any]]]:
    """A run on 300 digits: the scatter of its features, and its log."""
    x, labels = (part[:300] for part in digits())
    watch = Scatter(x)
    options = {"max_steps": STEPS, "learning_rate": 1e-3, "logging_steps": 5, "matching_weight": WEIGHT} | options
    trainer = fit(cls, Network, x, labels, callbacks=[watch], **options)
    return watch, trainer.state.log_history


class Convolutions(Network):
    """The small CNN of the evidence."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU()),
        )


def features() -> Picture:
    """Feature maps of test rows under Trainer and ITRATrainer: the task digits-300/cnn of the evidence, one seed."""
    x, labels = digits(torch.randperm(1797, generator=torch.Generator().manual_seed(0)))
    settings = {"learning_rate": 0.04, "weight_decay": 0.3, "warmup_steps": 0.1, "dataloader_drop_last": True}
    maps = {}
    for cls in (Trainer, ITRATrainer):
        trainer = fit(cls, Convolutions, x[:300], labels[:300], max_steps=2 * STEPS, **settings)
        with torch.no_grad():
            rows = trainer.model.body(x[300:])
        ratio = compactness(rows, labels[300:])["scatter_ratio"]
        maps[f"{cls.__name__}\nscatter ratio {ratio:.2f}"] = principal_axes(rows.numpy())[0]

    def draw(figure: Figure) -> None:
        for axes, (title, points) in zip(figure.subplots(1, 2), maps.items(), strict=True):
            for label in range(10):
                at = points[labels[300:] == label].T
                axes.scatter(*at, s=5, color=COLOURS[label], alpha=0.7, linewidths=0, label=str(label))
            axes.set(aspect="equal", adjustable="datalim", xticks=[], yticks=[])
            axes.set_title(title, fontsize=9.5)
        handles = axes.get_legend_handles_labels()
        look = {"ncols": 10, "columnspacing": 0.7, "handletextpad": 0, "markerscale": 2, "fontsize": 9}
        figure.legend(*handles, loc="outside lower center", **look)

    return Picture("features", "", "", "", draw, height=2.9)


def guards() -> Picture:
    """The weight that the ramp asks for, and what the cap leaves of it, in a run on the digits."""
    log = [entry for entry in train()[1] if "matching_weight" in entry]
    steps = [entry["step"] for entry in log]
    asked = [WEIGHT * np.mean([ramp(step - back, STEPS, 0.3) for back in range(1, 6)]) for step in steps]
    applied = [entry["matching_weight"] for entry in log]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        curve(axes, (steps, asked), "asked for by the ramp")
        curve(axes, (steps, applied), "applied, after the cap")
        finish(axes, "weight of the matching loss")

    return Picture("guards", "", "", "", draw)


def collapse() -> Picture:
    """The width of the features in three runs: Trainer, with the guards, without them."""
    runs = {
        "Trainer": train(Trainer)[0],
        "both guards": train()[0],
        "no guard": train(matching_warmup_ratio=0.0, matching_max_grad_ratio=None)[0],
    }

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, watch in runs.items():
            axes.plot(watch.steps, watch.values, label=name)
        finish(axes, "width of the features (RMS)", log=True)

    return Picture("collapse", "", "", "", draw)


def main(folder: Path = FOLDER) -> None:
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    for figure in (features, pair, kernel, estimators, guards, collapse):
        picture = figure()
        for theme in THEMES:
            (folder / f"{picture.name}-{theme}.png").write_bytes(picture.png(theme))


if __name__ == "__main__":
    main()
