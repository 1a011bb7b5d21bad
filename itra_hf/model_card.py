"""The model card's section on the matching, from a template."""

from dataclasses import fields
from pathlib import Path
from string import Template

from huggingface_hub import ModelCard

from itra_hf.config import MatchingArguments

HEADING = "## In-Training Representation Alignment"

NO_BASE_MODEL = "a fine-tuned version of [](https://huggingface.co/)"  # Trainer's words where a model has no name

SECTION = Template(
    f"""{HEADING}

Beside the task loss, training matched the features of the two halves of every batch by their squared maximum mean
discrepancy (MMD), with the package `itra_hf`. To use the model, `transformers` is enough.

| option | value |
|---|---|
$options

```bibtex
@inproceedings{{li2023learning,
  title     = {{Learning Compact Features via In-Training Representation Alignment}},
  author    = {{Li, Xin and Li, Xiangrui and Pan, Deng and Qiang, Yao and Zhu, Dongxiao}},
  booktitle = {{Proceedings of the AAAI Conference on Artificial Intelligence}},
  volume    = {{37}},
  number    = {{7}},
  year      = {{2023}},
  doi       = {{10.1609/aaai.v37i7.26044}}
}}
```
"""
)


def add_itra_section(path: str | Path, args: MatchingArguments) -> None:
    """Add the matching's section and the tag `itra` to the model card at `path`, or bring them up to date."""
    card = ModelCard.load(path)
    tags = card.data.tags or []
    card.data.tags = [*tags, *({"itra"} - set(tags))]
    options = "\n".join(f"| {field.name} | {getattr(args, field.name)} |" for field in fields(MatchingArguments))
    text = card.text.split(HEADING)[0].rstrip().replace(NO_BASE_MODEL, "trained from scratch")
    card.text = f"{text}\n\n{SECTION.substitute(options=options)}"
    card.save(path)
