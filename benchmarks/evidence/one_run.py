"""A run, from its settings to its measures."""

import json
import tempfile
import warnings
from functools import partial
from typing import Any, NamedTuple

import torch
from measures import StepCost, machine, measure
from methods import OWN_OPTIONS, find_method, one_half_loss
from networks import add_dropout
from tasks import Task
from transformers import PrinterCallback, set_seed
from transformers.utils import logging

from itra_hf import ITRAConfig
from itra_hf.losses import class_conditional_mmd


class Run(NamedTuple):
    """One training; `key` tells it from all others."""

    task: str
    method: str
    seed: int
    split: str
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        return json.dumps(self, sort_keys=True)


def execute(run: Run, folders: dict[str, str]) -> dict[str, Any]:
    """Train and measure; the seed decides the training rows, the initial weights and the order."""
    quiet()
    task = Task(run.task)
    data = task.load(folders)
    train, measured = task.draw(data, run.seed, run.split == "validation")
    own = {name: value for name, value in run.settings.items() if name in OWN_OPTIONS}
    options = {name: value for name, value in run.settings.items() if name not in OWN_OPTIONS}
    options["per_device_train_batch_size"] //= own.get("ranks", 1)
    set_seed(run.seed)
    model = task.build(data)
    if "dropout" in own:
        add_dropout(model, own["dropout"])
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(folder, run.seed, options)
        cost = StepCost()
        trainer = find_method(run.method)[0].trainer(
            model, args, data.augment or data.collator, train, callbacks=[cost], **trainer_options(own)
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        costs, trainer.data_collator = cost.measured(), data.collator
        scores = measure(trainer, measured)
        fit = measure(trainer, train[:: -(-len(train) // 1000)])  # at most 1,000 rows, of all classes
    fitted = {"train_accuracy": fit["accuracy"], "train_loss": fit["loss"]}
    return {**run._asdict(), "machine": machine(), **scores, **costs, **fitted}


def quiet() -> None:
    """One thread, and nothing said but results."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")


def arguments(folder: str, seed: int, options: dict[str, Any]) -> ITRAConfig:
    """The arguments of every run; to Trainer those of ITRA mean nothing."""
    return ITRAConfig(
        folder,
        seed=seed,
        warmup_steps=0.1,
        per_device_eval_batch_size=256,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        **options,
    )


def trainer_options(own: dict[str, Any]) -> dict[str, Any]:
    """What a run's own options give the trainer."""
    options = {"strength": own["strength"]} if "strength" in own else {}
    if own.get("one_half"):
        options["compute_loss_func"] = one_half_loss
    if own.get("unbiased"):
        options["matching_loss"] = partial(class_conditional_mmd, unbiased=True)
    return options
