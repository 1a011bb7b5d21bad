"""What `itra-hf --help` and `itra-hf COMMAND --help` print."""

import textwrap
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

COMMANDS = {
    "train": "Train on texts, images or sounds with ITRATrainer; evaluate; save the model and its card.",
    "compare": "Train with Trainer and with ITRATrainer on the same seeds; tell whether the matching helps.",
    "report": "Write the report of a finished run or comparison anew: itra-hf report FOLDER.",
    "env": "Print the versions and devices that a bug report needs.",
}

HELP = """itra-hf COMMAND [CONFIG.yaml] [--option value ...]

In-Training Representation Alignment for the Hugging Face Trainer.

Commands:
{commands}

A yaml or json file may stand in for the options; options after it override it:

  itra-hf train config.yaml --matching_weight 0.5
  itra-hf compare config.yaml --seeds 5
  itra-hf train --model_name_or_path distilbert/distilbert-base-uncased --train_file train.csv --output_dir out

Several processes take --num_processes N, or --accelerate_config FILE, a file of `accelerate config`.
`itra-hf COMMAND --help` tells the options of a command; --debug shows the traceback of an error."""

MORE_OPTIONS = """Several processes:
  --num_processes             Start this many by `accelerate launch`.
  --accelerate_config         Start as this file of `accelerate config` says.

Every option of transformers.TrainingArguments works too, such as --output_dir, --num_train_epochs, --learning_rate,
--per_device_train_batch_size, --seed, --report_to or --push_to_hub. A run logs fifty times (--logging_steps 0.02)."""


def options_help(command: str, told: str, groups: Mapping[str, Any]) -> str:
    """The options of this package; those of TrainingArguments are too many, and documented elsewhere."""
    lines = [f"itra-hf {command} [CONFIG.yaml] [--option value ...]", "", told]
    for title, kind in groups.items():
        lines += ["", f"{title}:"]
        for option in fields(kind):
            default = "" if option.default in (None, "") else f" (default:\0{option.default})"
            text = textwrap.wrap(option.metadata["help"] + default, 84)
            lines += [f"  --{option.name:<26}{text[0]}", *(" " * 30 + more for more in text[1:])]
    return "\n".join([*lines, "", MORE_OPTIONS]).replace("\0", " ")
