"""What people push, run in a process of its own against `hub.Hub`: `python pushes.py FOLDER`.

`FOLDER/NAME.npy` holds the predictions of the model that was pushed to `jane/NAME`, `FOLDER/results.json` the rest.
"""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import tiny
import torch
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, Trainer, TrainerCallback

from itra_hf import ITRATrainer

TOKEN = "hf_jane"  # noqa: S105
STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")
results = {}


def tokenizer():
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(50)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w1")


def make(folder, name, model, cls=ITRATrainer, **changes):
    keywords = {"processing_class": tokenizer(), "compute_metrics": accuracy}
    options = {"push_to_hub": True, "hub_model_id": name, "hub_token": TOKEN, "hub_always_push": True}
    options |= {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = tiny.trainer(folder / name, model, tiny.texts(), cls, keywords, **options | changes)
    trainer.add_callback(TakeTime(trainer))
    return trainer


class TakeTime(TrainerCallback):
    """Steps that take longer than a push: else a checkpoint may change a file that is being pushed."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if args.push_to_hub and self.trainer.push_in_progress is not None:
            self.trainer.push_in_progress.wait_until_done()


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def keep(folder, name, trainer):
    np.save(folder / f"{name}.npy", trainer.predict(tiny.texts()).predictions)


def each_strategy(folder):
    for strategy in STRATEGIES:
        for cls in (Trainer, ITRATrainer):
            name = f"{strategy}-{cls.__name__}"
            trainer = make(folder, name, tiny.bert(), cls, hub_strategy=strategy)
            trainer.train()
            trainer.push_to_hub("First push", dataset="six words", tags="tiny")
            keep(folder, name, trainer)


def again(folder):
    """A second push of other weights, and one by `save_model`; the token is not in the arguments."""
    trainer = make(folder, "again", tiny.bert(), push_to_hub=False, hub_token=None, learning_rate=1e-2)
    trainer.push_to_hub(token=TOKEN)
    trainer.train()
    trainer.push_to_hub("After training", token=TOKEN)
    keep(folder, "again", trainer)


def adapters(folder):
    """Adapters on a base model of the Hub."""
    base = make(folder, "base", tiny.bert())
    base.save_model()
    model = AutoModelForSequenceClassification.from_pretrained("jane/base")
    model = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["query", "value"]))
    trainer = make(folder, "adapters", model, learning_rate=1e-1)
    trainer.train()
    trainer.push_to_hub(dataset="six words")
    keep(folder, "adapters", trainer)


def wrong_token(folder):
    """At construction where training is to push, and from a push by hand afterwards."""
    try:
        make(folder, "wrong", tiny.bert(), hub_token="hf_wrong")
    except Exception as error:
        results["wrong at construction"] = str(error)
    trainer = make(folder, "wrong", tiny.bert(), push_to_hub=False, hub_token="hf_wrong")
    trainer.train()
    try:
        trainer.push_to_hub()
    except Exception as error:
        results["wrong after training"] = [str(error), *error.__notes__]
    trainer.save_model()
    results["steps under a wrong token"] = trainer.state.global_step


def failing_server(folder):
    """The Hub takes one commit of the training and no more."""
    warnings = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("itra_hf").addHandler(handler)
    trainer = make(folder, "failing", tiny.bert(), hub_strategy="every_save")
    trainer.train()
    logging.getLogger("itra_hf").removeHandler(handler)
    try:
        trainer.push_to_hub()
    except Exception as error:
        results["failing at the end"] = [str(error), *error.__notes__]
    results["failing while training"] = warnings
    results["steps under a failing server"] = trainer.state.global_step
    loaded = AutoModelForSequenceClassification.from_pretrained(folder / "failing")
    results["kept"] = torch.equal(tiny.weights(loaded), tiny.weights(trainer.model))


def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    for scenario in (each_strategy, again, adapters, wrong_token, failing_server):
        scenario(folder)
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
