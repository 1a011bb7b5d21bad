"""The command `itra-hf`: train, or compare Trainer with ITRATrainer, without writing a script."""

import sys
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from itra_hf.command.launching import launch
from itra_hf.version import __version__

COMMANDS = {
    "train": "Train on texts, images or sounds with ITRATrainer; evaluate; save the model and its card.",
    "compare": "Train with Trainer and with ITRATrainer on the same seeds; say whether the matching helps.",
    "report": "Write the report of a finished run or comparison again: itra-hf report FOLDER.",
    "env": "Print the versions and devices that a bug report needs.",
}

HELP = """itra-hf COMMAND [CONFIG.yaml] [--option value ...]

In-Training Representation Alignment for the Hugging Face Trainer.

Commands:
{commands}

A yaml or json file can hold the options. Options after it override it:

  itra-hf train config.yaml --matching_weight 0.5
  itra-hf compare config.yaml --seeds 5
  itra-hf train --model_name_or_path distilbert/distilbert-base-uncased --train_file train.csv --output_dir out

For several processes, add --num_processes N, or --accelerate_config FILE, a file of `accelerate config`.
`itra-hf COMMAND --help` lists the options of a command; --debug shows the traceback of an error."""

MORE_OPTIONS = """Several processes:
  --num_processes             Start this many with `accelerate launch`.
  --accelerate_config         Start with this file of `accelerate config`.

Every option of transformers.TrainingArguments works too, such as --output_dir, --num_train_epochs, --learning_rate,
--per_device_train_batch_size, --seed, --report_to or --push_to_hub. A run logs fifty times (--logging_steps 0.02)."""


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:<9} {summary}" for name, summary in COMMANDS.items())))
        return
    if argv[0] == "--version":
        print(__version__)
        return
    command, *rest = argv
    if command not in COMMANDS:
        sys.exit(f"itra-hf: {command!r} is not a command; choose one of {', '.join(COMMANDS)}")
    rest, shows_traceback = _without_debug(rest)
    try:
        launch(argv)
        run(command, rest)
    except (ValueError, OSError, ImportError) as error:  # which a user can correct; others are faults of the package
        if shows_traceback:
            raise
        sys.exit(f"itra-hf {command}: {_one_line(error)}")
    except KeyboardInterrupt:
        goes_on = "; the same command goes on where it stopped" if command == "compare" else ""
        print(f"\nitra-hf {command}: interrupted{goes_on}", file=sys.stderr)
        sys.exit(130)


def run(command: str, argv: list[str]) -> None:
    """Run a command, or print its options; only this function imports what takes seconds."""
    from itra_hf.command import commands

    if {"-h", "--help"} & set(argv):
        groups = commands.OPTIONS.get(command)
        print(options_help(command, COMMANDS[command], groups) if groups else COMMANDS[command])
    else:
        getattr(commands, f"{command}_command")(argv)


def options_help(command: str, summary: str, groups: Mapping[str, Any]) -> str:
    """The options of this package; TrainingArguments has too many, and its own documentation."""
    lines = [f"itra-hf {command} [CONFIG.yaml] [--option value ...]", "", summary]
    for title, kind in groups.items():
        lines += ["", f"{title}:"]
        for option in fields(kind):
            default = "" if option.default in (None, "") else f" (default:\0{option.default})"
            text = textwrap.wrap(option.metadata["help"] + default, 84)
            lines += [f"  --{option.name:<26}{text[0]}", *(" " * 30 + more for more in text[1:])]
    return "\n".join([*lines, "", MORE_OPTIONS]).replace("\0", " ")


def _one_line(error: Exception) -> str:
    """The message; a worker of the data loader puts a traceback before it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[-1 if "Original Traceback" in str(error) else 0 :]).strip()


def _without_debug(argv: list[str]) -> tuple[list[str], bool]:
    """The words without the flag --debug, and whether it was there; with a value, it is an option of Trainer."""
    flags = [n for n, word in enumerate(argv) if word == "--debug" and (argv[n + 1 : n + 2] or ["--"])[0][:2] == "--"]
    return [word for n, word in enumerate(argv) if n not in flags], bool(flags)


if __name__ == "__main__":
    main()
