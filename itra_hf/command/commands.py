"""What the commands of `itra-hf` do."""

import logging
import platform
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import torch
from transformers import HfArgumentParser, set_seed

from itra_hf.command.compare import RESULT, compare
from itra_hf.command.data import TaskArguments
from itra_hf.command.differences import table
from itra_hf.command.kept_runs import HARMLESS, check_further
from itra_hf.command.options import as_words, check_numbers, nearest
from itra_hf.command.tasks import Task, load_task
from itra_hf.config import ITRAConfig, MatchingArguments
from itra_hf.diagnostics import ITRADiagnosticsCallback
from itra_hf.hub.checkpoints import last_whole_checkpoint
from itra_hf.trainer import ITRATrainer
from itra_hf.version import __version__

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "huggingface_hub", "numpy", "triton")


@dataclass
class TrainArguments:
    """What `train` does after training."""

    report: bool = field(default=False, metadata={"help": "Write report.html too; needs matplotlib and jinja2."})


@dataclass
class CompareArguments:
    """What `compare` trains."""

    seeds: int = field(default=5, metadata={"help": "Train both with this many seeds: --seed and the following ones."})
    also: list[str] | None = field(
        default=None,
        metadata={
            "help": "Train both also with this option, such as label_smoothing_factor=0.1; may be given several times.",
            "action": "extend",
        },
    )
    samples_per_class: int | None = field(
        default=None, metadata={"help": "Train on this many random rows of each class; each seed gets a new draw."}
    )

    def __post_init__(self) -> None:
        if self.samples_per_class is not None and self.samples_per_class < 1:
            raise ValueError(f"samples_per_class={self.samples_per_class} must be at least 1")
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds} must be at least 1; an interval needs 2, and is narrower with more")


class _Parser(HfArgumentParser):
    """A parser that raises an error, instead of printing the long list of all options."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def prepare(data: TaskArguments, args: ITRAConfig, resume: str | bool | None = None) -> Task:
    """The task of a command, once the folders that it needs were checked."""
    check_folders(args, resume)
    set_seed(args.seed)
    with args.main_process_first(desc="reading the data"):
        return load_task(data, args.seed)


def check_folders(args: ITRAConfig, resume: str | bool | None) -> None:
    """Refuse an output folder that is a file, and a checkpoint that is not there, before the data are read."""
    if Path(str(args.output_dir)).is_file():
        raise ValueError(f"output_dir={args.output_dir} is a file; give a folder")
    if resume is True and last_whole_checkpoint(args.output_dir) is None:
        raise ValueError(
            f"resume_from_checkpoint=True, and {args.output_dir} holds no whole checkpoint; leave the option out"
        )
    if isinstance(resume, str) and not Path(resume).is_dir():
        raise ValueError(
            f"resume_from_checkpoint={resume} is not a folder; give a checkpoint's, or True for the newest"
        )


def parse(command: str, argv: list[str], *kinds: Any) -> tuple[Any, ...]:
    """The arguments of a command as dataclasses: from a file, if there is one, and from the options after it."""
    kinds = (TaskArguments, *kinds, ITRAConfig)
    parser = _Parser(kinds)
    parser.set_defaults(output_dir=f"outputs/{command}", logging_steps=0.02)  # fifty times a run, however short
    known = {name: str(of_kind) for kind in kinds for name, of_kind in get_type_hints(kind).items()}
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        parser.set_defaults(**as_words(argv[0], command, known))
        argv = argv[1:]
    *parsed, unread = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unread:
        near = nearest(unread[0].partition("=")[0], [f"--{name}" for name in known])
        raise ValueError(f"unknown option {unread[0]}{near}; see --help")
    for options in parsed:
        check_numbers(options)
    args = parsed[-1]
    if str(args.resume_from_checkpoint).lower() in ("true", "false"):  # on a command line, both are text
        args.resume_from_checkpoint = str(args.resume_from_checkpoint).lower() == "true" or None
    return tuple(parsed)


def train_command(argv: list[str]) -> None:
    """Train on texts, images or sounds with ITRATrainer; evaluate; save the model and its card."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("itra_hf").setLevel(logging.INFO)  # what is matched
    data, how, args = parse("train", argv, TrainArguments)
    task = prepare(data, args, args.resume_from_checkpoint)
    if how.report:
        from itra_hf import report  # which needs matplotlib
    callbacks = [ITRADiagnosticsCallback()] if task.has_scatter else []
    trainer = task.trainer(ITRATrainer, args, callbacks)
    trained = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.log_metrics("train", trained.metrics)
    trainer.save_metrics("train", trained.metrics)
    scores = trainer.evaluate()
    trainer.log_metrics("eval", scores)
    trainer.save_metrics("eval", scores)
    trainer.save_state()
    if how.report and trainer.is_world_process_zero():
        print(f"{report.write_report(Path(str(args.output_dir)))} shows it.")
    kind = f"{task.kind}-classification"
    card: dict[str, Any] = {"finetuned_from": task.model_name, "tasks": kind, "dataset": task.dataset_name}
    if args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.save_model()
        trainer.create_model_card(**card)


def compare_command(argv: list[str]) -> None:
    """Train with Trainer and with ITRATrainer on the same seeds; say whether the matching helps."""
    from itra_hf import report  # which needs matplotlib

    data, how, args = parse("compare", argv, CompareArguments)
    also = [with_option(argv, option) for option in how.also or []]
    task = prepare(data, args)
    seeds = list(range(args.seed, args.seed + how.seeds))
    result = compare(task, args, seeds, also=also, samples_per_class=how.samples_per_class)
    if args.process_index == 0:
        page = report.write_comparison(Path(str(args.output_dir), RESULT))
        told = "\n".join(line for line in (result["matched"], *result["warnings"]) if line)
        print(f"\n{table(result)}\n\n{result['sentence']}\n\n{told}\n\n{page} shows it.")


def with_option(argv: list[str], option: str) -> ITRAConfig:
    """The arguments of `compare` with one option changed, given as `name=value`."""
    name, is_given, value = option.partition("=")
    known = {each.name for each in fields(ITRAConfig) if each.init and not each.name.startswith(HARMLESS)} - {"seed"}
    if name not in known or not is_given:
        raise ValueError(
            f"also={option!r} is not an option of a run with its value{nearest(name, known)}; give name=value"
        )
    check_further([name])  # before it is parsed, which may set it
    args: ITRAConfig = parse("compare", [*argv, f"--{name}={value}"], CompareArguments)[-1]
    return args


def report_command(argv: list[str]) -> None:
    """Write the report of a finished run or comparison again: itra-hf report FOLDER."""
    from itra_hf import report

    report.main(argv)


def env_command(argv: list[str]) -> None:
    """Print the versions and devices that a bug report needs, without a path or a name of the user."""
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    found = {"itra_hf": __version__, "Python": platform.python_version(), "platform": platform.platform()}
    found |= {name: _version(name) for name in PACKAGES}
    found |= {"CUDA": torch.version.cuda or "none", "GPUs": ", ".join(devices) or "none"}
    print("\n".join(f"{name:<16} {value}" for name, value in found.items()))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


OPTIONS: dict[str, Any] = {
    "train": {"Model and data": TaskArguments, "Output": TrainArguments, "The matching": MatchingArguments},
    "compare": {"Model and data": TaskArguments, "Seeds": CompareArguments, "The matching": MatchingArguments},
}
