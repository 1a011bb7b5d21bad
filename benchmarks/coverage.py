"""Which classification architectures of transformers ITRA serves, and how: prints and writes `docs/coverage.md`.

Every class of AutoModelFor{Sequence,Image,Audio}Classification is built from a tiny random config. A class counts as
served when its features, in evaluation and in training mode, give the model's logits through its head alone, pass a
gradient to the body, and finding the head left the random state alone; texts are padded on the right and on the left.

    python benchmarks/coverage.py
"""

import re
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tiny_models import architectures, check_features, tiny_inputs, tiny_model

from itra_hf.features import HeadInput, HeadNotFoundError, find_head

TABLE = Path(__file__).parents[1] / "docs" / "coverage.md"


def measure(family: str, model_type: str, class_name: str) -> tuple[str, list[str]]:
    """The verdict on a class and the cells of its row."""
    try:
        model = tiny_model(model_type, class_name)
    except ImportError as error:
        package = re.search(r"requires the (\S+) library", str(error))
        return "not built", ["", "", "", "", f"not built: needs {package[1] if package else error}"]
    inputs = tiny_inputs(model, family)
    state = torch.get_rng_state()
    try:
        head_input = find_head(model, inputs)
    except HeadNotFoundError:
        return "refused", ["", "", "", "", "refused: no linear layer's output makes the logits"]
    if not torch.equal(state, torch.get_rng_state()):
        raise AssertionError(f"{class_name}: finding the head moved the random state")
    sides = ("right", "left") if family == "text" else ("right",)
    for side in sides:
        inputs = tiny_inputs(model, family, side)
        for training in (False, True):
            rows = check_features(model, inputs, head_input, training)
    names = {module: name for name, module in model.named_modules()}
    heads = " and ".join(names[head] for head in head_input.heads)
    pooling = head_input.pooling if len(head_input.heads) == 1 else "average of two heads"
    dropout = "yes" if _dropout_before_head(model, inputs, head_input) else ""
    return "served", [heads, pooling, str(list(rows.shape)), dropout, "served"]


def _dropout_before_head(model: nn.Module, inputs: dict[str, torch.Tensor], head_input: HeadInput) -> bool:
    """Whether an `nn.Dropout` makes the head's input."""
    made: list[torch.Tensor] = []
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    handles = [dropout.register_forward_hook(lambda _, __, output: made.append(output)) for dropout in dropouts]
    with head_input.attached():
        model.train()(**inputs)
        found = any(output is full for output in made for full in head_input.inputs)
    for handle in handles:
        handle.remove()
    return found


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    results = []
    for family, model_type, class_name in architectures():
        try:
            verdict, cells = measure(family, model_type, class_name)
        except Exception as error:
            message = str(error).splitlines()[0] if str(error) else ""
            verdict, cells = "FAILED", ["", "", "", "", f"FAILED: {type(error).__name__}: {message}"]
        results.append((family, verdict, [class_name, family, *cells]))
    counts = Counter((family, verdict) for family, verdict, _ in results)
    families = list(dict.fromkeys(family for family, _, _ in results))
    verdicts = list(dict.fromkeys(verdict for _, verdict, _ in results))
    lines = [
        "# Coverage of the classification architectures",
        "",
        "Which classification models of transformers ITRA works with, and what their features are. Made by",
        f"`python benchmarks/coverage.py` with transformers {transformers.__version__} and torch {torch.__version__}.",
        "",
        "Every class of AutoModelForSequenceClassification, AutoModelForImageClassification and",
        "AutoModelForAudioClassification is built from a tiny random config. A class is *served* if its features give",
        "the model's logits through its head alone, and pass a gradient to the body. This must hold in evaluation and",
        "in training mode, and for texts padded on the right and on the left.",
        "",
        "| pooling | how the head's output becomes the logits |",
        "| --- | --- |",
        "| `row` | one output per example |",
        "| `picked` | the output of one token |",
        "| `mean` | the mean over the attention mask |",
        "| average of two heads | the features are both heads' inputs, side by side (once if they share it) |",
        "",
        "*Features* are `[rows, d]` of the tiny model. *Dropout* says whether an `nn.Dropout` makes the head's input.",
        "",
        f"The {len(set(MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES.values()))} classes of AutoModelForMultipleChoice are",
        "refused: each choice has its own logit and features, so a row has none. They train as under Trainer.",
        "",
        *_table(["", *verdicts], [[name, *(str(counts[name, verdict]) for verdict in verdicts)] for name in families]),
        "",
        *_table(["class", "family", "head", "pooling", "features", "dropout", ""], [cells for _, _, cells in results]),
    ]
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    if any(verdict == "FAILED" for _, verdict, _ in results):
        sys.exit(1)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


if __name__ == "__main__":
    main()
