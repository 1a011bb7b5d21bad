"""What others may read of a run: its arguments and names, without a path of this machine, a user's name or a token."""

import os
import re
from dataclasses import fields
from enum import Enum
from pathlib import PureWindowsPath
from typing import Any

from transformers import TrainingArguments

from itra_hf.config import ITRAConfig, MatchingArguments

PUBLIC = ("lr_scheduler_kwargs", "optim_args", "train_sampling_strategy")  # texts and tables that hold no secret
DATA_FILES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".arrow")
# Beginnings of options that are private or change no weight.
PRIVATE = ("hub_", "push_", "log", "do_", "disable_", "use_cpu", "local_rank", "dataloader_pin", "resume_from")


def public_arguments(args: TrainingArguments) -> dict[str, Any]:
    """The arguments that a repetition of the run needs: those that differ from their default, and the seed.

    The author's own texts (paths, names, tokens) are left out, and options that change no weight.
    """
    ours = {option.name for option in fields(MatchingArguments)}
    told = {}
    for option in fields(ITRAConfig):
        value = getattr(args, option.name, option.default)
        is_set = value != option.default and not (value is False and option.default is None)
        is_public = option.init and not option.name.startswith(PRIVATE)
        is_plain = isinstance(value, (bool, int, float, Enum)) or option.name in (*ours, *PUBLIC)
        if option.name == "seed" or (is_set and is_public and is_plain):
            told[option.name] = value.value if isinstance(value, Enum) else value
    return told


def as_text(words: object) -> str:
    r"""Escape text so that Markdown shows it literally, without headings, pictures, links, table cells or markup."""
    line = " ".join(str(words).split())
    if re.fullmatch(r"[\w ()-]*", line):  # a snake_case name is none of these
        return line
    return re.sub(r"[\\`*_\[\]<>#|~&!@]|:(?=//)|(?<=www)\.", lambda sign: f"&#{ord(sign[0])};", line)


def is_local(name: str) -> bool:
    """Whether a name is a path of this machine, not a name on the Hub."""
    return os.path.exists(name) or re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) is None


def public_name(name: str) -> str:
    """The name of a model or a data set; only the last part of a path."""
    return PureWindowsPath(name).stem if _is_path(name) else name


def is_folder(name: str) -> bool:
    """Whether a name is that of a folder, which should stay private."""
    return os.path.isdir(name) or (_is_path(name) and PureWindowsPath(name).suffix.lower() not in DATA_FILES)


def _is_path(name: str) -> bool:
    """Whether a name is a path of some machine: by how it begins, its slashes, or what it ends in."""
    begins = re.match(r"[./~\\]|\w:|file:", name) is not None
    is_file = PureWindowsPath(name).suffix.lower() in DATA_FILES
    return os.path.exists(name) or begins or is_file or "\\" in name or (name.count("/") > 1 and is_local(name))
