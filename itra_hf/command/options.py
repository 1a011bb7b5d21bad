"""The options of the command line, from a yaml or json file or as words, and their checks."""

import json
import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

MAY_BE_INFINITE = ("max_grad_norm", "matching_max_grad_ratio")  # where it means no limit
PATHS = ("model_name_or_path", "dataset_name", "train_file", "validation_file", "resume_from_checkpoint")


def read_options(path: str) -> dict[str, Any]:
    """The options in a yaml or json file; a blank value means the default, and is left out.

    A relative path is looked for next to the file first. yaml reads a bare `no` as False, which is no strategy.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text) if path.endswith(".json") else yaml.safe_load(text) or {}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in utf-8 ({error.reason}); save it so") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} cannot be read as json; fix it: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read as yaml; fix it: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no options; write one on each line, such as learning_rate: 5e-5")
    values = {str(name): value for name, value in values.items() if value not in (None, "")}
    for name in PATHS:
        if isinstance(values.get(name), str):
            beside = Path(path).parent / Path(values[name]).expanduser()
            values[name] = str(beside) if beside.exists() else values[name]
    return {name: "no" if name.endswith("_strategy") and value is False else value for name, value in values.items()}


def as_words(path: str, command: str, kinds: Mapping[str, str]) -> dict[str, Any]:
    """The options of a file as words of a command line, so that both get the same checks.

    A list or a dict stays one if the type of the option, which `kinds` has as text, names it.
    """
    values = read_options(path)
    if unknown := sorted(set(values) - set(kinds)):
        near = nearest(unknown[0], kinds)
        raise ValueError(
            f"{path} sets {', '.join(unknown)}, which is not an option that {command} takes from a file{near}"
        )
    words: dict[str, Any] = {}
    for name, value in values.items():
        kind = type(value).__name__
        if isinstance(value, (list, dict)) and kind not in kinds[name].lower():
            raise ValueError(f"{path} sets {name} to a {kind}; give one value")
        if isinstance(value, list) and any(each is None or isinstance(each, (list, dict)) for each in value):
            raise ValueError(f"{path} sets {name} to a list of other things than words; give words or numbers")
        if kinds[name].startswith("list[str]") and not isinstance(value, dict):
            value = [str(each) for each in value] if isinstance(value, list) else [str(value)]
        words[name] = value if isinstance(value, (list, dict)) else str(value)
    return words


def check_numbers(options: Any) -> None:
    """Refuse `nan` and `inf`, which `float` takes for numbers."""
    for name, value in vars(options).items():
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and name not in MAY_BE_INFINITE)):
            raise ValueError(f"{name}={value} is not a number to train with; give a finite one")


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word; empty if no known word is near."""
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
