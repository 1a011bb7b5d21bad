"""Digests of the content of rows, a model or a processor; names and places do not count."""

import copy
import hashlib
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

WHERE = ("_name_or_path", "name_or_path", "transformers_version")  # of a config: where it came from


def rows_digest(rows: Dataset) -> str:
    """A digest of the features and of all cells in their order; images and sounds count by their files' bytes."""
    digest = hashlib.sha256(repr(rows.features).encode())
    media = {name for name, feature in rows.features.items() if re.search(r"\b(Audio|Image)\(", repr(feature))}
    for batch in rows.with_format("arrow").iter(batch_size=1000):
        for name, column in zip(batch.column_names, batch.columns, strict=True):
            cells = column.to_pylist()
            digest.update(hashlib.sha256(repr(_bytes_of(cells) if name in media else cells).encode()).digest())
    return digest.hexdigest()[:16]


def _bytes_of(cells: Any) -> Any:
    """Cells with a digest instead of each image or sound, whose bytes are in the cell or in a file."""
    if isinstance(cells, list):
        return [_bytes_of(cell) for cell in cells]
    if isinstance(cells, dict) and cells.keys() == {"bytes", "path"}:
        content = Path(cells["path"]).read_bytes() if cells["bytes"] is None else cells["bytes"]
        return hashlib.sha256(content).digest()
    return {name: _bytes_of(cell) for name, cell in cells.items()} if isinstance(cells, dict) else cells


def model_digest(model: nn.Module) -> str:
    """A digest of a model's layers with their plain attributes, its weights and buffers, and its config."""
    digest = hashlib.sha256(repr(model).encode())
    for module in model.modules():
        digest.update(repr({name: value for name, value in sorted(vars(module).items()) if _is_plain(value)}).encode())
    if isinstance(model, PreTrainedModel):
        config = {name: value for name, value in model.config.to_dict().items() if name not in WHERE}
        digest.update(repr(config).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]


def _is_plain(value: Any) -> bool:
    """Whether an attribute is a number, or numbers by name, such as the scaling of a LoRA layer."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(each) for name, each in value.items())
    return isinstance(value, (bool, int, float))


def processor_digest(processor: Any) -> str | None:
    """A digest of the files that a tokenizer, an image processor or a feature extractor saves; None without one."""
    if processor is None:
        return None
    digest, unused = hashlib.sha256(), copy.deepcopy(processor)
    if isinstance(unused, PreTrainedTokenizerFast):  # it saves how it was last called
        unused.backend_tokenizer.no_truncation()
        unused.backend_tokenizer.no_padding()
    with tempfile.TemporaryDirectory() as folder:
        unused.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*.*")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
