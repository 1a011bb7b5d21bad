"""Tiny random models of every classification architecture of transformers, made from their config classes."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from itra_hf.features import HeadInput
from itra_hf.features.recorder import possible_logits

FAMILIES = {
    "text": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "image": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "audio": modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
}
LABELS, ROWS, TOKENS = 5, 4, 12
SIZES = {
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers depth "
    "num_self_attends_per_block num_experts_per_tok moe_topk",
    4: "num_attention_heads n_head n_heads encoder_attention_heads decoder_attention_heads num_key_value_heads "
    "num_experts num_local_experts n_routed_experts",
    8: "head_dim d_kv d_head kv_channels v_head_dim qk_nope_head_dim qk_rope_head_dim kv_lora_rank q_lora_rank",
    32: "hidden_size d_model n_embd dim emb_dim embedding_size hidden_dim decoder_hidden_size",
    64: "intermediate_size d_inner d_ff dff ffn_dim encoder_ffn_dim decoder_ffn_dim moe_intermediate_size "
    "shared_expert_intermediate_size image_size",
    100: "vocab_size entity_vocab_size",
    128: "max_position_embeddings n_positions",
}
SMALLER = {name: size for size, names in SIZES.items() for name in names.split()}
TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SPECIAL: dict[str, dict[str, Any]] = {
    "axk1": {"n_group": 2, "topk_group": 1},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "qwen3_next": {"num_hidden_layers": 4},
    "qwen3_5_text": {"num_hidden_layers": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lilt": {"hidden_size": 48},
    "perceiver": {"d_latents": 32, "d_model": 32, "num_cross_attention_heads": 1, "num_self_attention_heads": 1},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [3, 4]},
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["mamba", "hybrid", "hybrid"], "num_hidden_layers": 3},
    "shieldgemma2": {"yes_token_index": 3, "no_token_index": 4},
    "swin": {"window_size": 2},
    "donut-swin": {"window_size": 2},
    "efficientnet": {"hidden_dim": 2560},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
}
OTHER_INPUTS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "imagegpt": lambda: {"input_ids": torch.randint(5, 90, (ROWS, TOKENS))},
    "siglip2": lambda: {
        "pixel_values": torch.randn(ROWS, 16, 768),
        "pixel_attention_mask": torch.ones(ROWS, 16).long(),
        "spatial_shapes": torch.full((ROWS, 2), 4),
    },
    "shieldgemma2": lambda: {"input_ids": torch.randint(5, 90, (ROWS, TOKENS))},
    "audio-spectrogram-transformer": lambda: {"input_values": torch.randn(ROWS, 1024, 128)},
    "wav2vec2-bert": lambda: {"input_features": torch.randn(ROWS, 20, 160)},
    "whisper": lambda: {"input_features": torch.randn(ROWS, 80, 3000)},
}


def architectures() -> list[tuple[str, str, str]]:
    """(family, model type, class name) of every class of the three Auto classes, by the last of its model types."""
    entries = {
        name: (family, model_type, name)
        for family, names in FAMILIES.items()
        for model_type, classes in names.items()
        for name in ((classes,) if isinstance(classes, str) else classes)
    }
    return list(entries.values())


def small_options(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """The options of a config class whose defaults are large, with small values."""
    options: dict[str, Any] = {}
    defaults = config_class()
    for name in signature(config_class).parameters:
        default = getattr(defaults, name, None)
        if name in SMALLER and (default is None or isinstance(default, int)):
            options[name] = min(default or 1000, SMALLER[name])
        elif name in SMALLER and isinstance(default, (list, tuple)) and name == "image_size":
            options[name] = [64, 64]
        elif name in TOKEN_IDS:
            options[name] = TOKEN_IDS[name]
        elif name == "depths":
            options[name] = [1] * len(default)
    for name in config_class.sub_configs:
        part = getattr(defaults, name)
        if part is not None:
            options[name] = type(part)(**small_options(type(part)))
    return options | SPECIAL.get(config_class.model_type, {})


def tiny_model(model_type: str, class_name: str, **options: Any) -> PreTrainedModel:
    """A model of random weights in evaluation mode."""
    config_class = CONFIG_MAPPING[model_type]
    torch.manual_seed(0)
    config = config_class(**{"num_labels": LABELS, **small_options(config_class), **options})
    model = getattr(transformers, class_name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)  # so that no bias is zero
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="tanh")  # so that no deep network's features vanish
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
    return model


def tiny_inputs(model: PreTrainedModel, family: str, padding: str = "right") -> dict[str, Tensor]:
    """Inputs of `ROWS` examples; texts differ in length and are padded on one side."""
    torch.manual_seed(1)
    name = model.main_input_name
    if model.config.model_type in OTHER_INPUTS:
        return OTHER_INPUTS[model.config.model_type]()
    if family == "image":
        return {name: torch.randn(ROWS, 3, *[56 if "perceiver" in model.config.model_type else 64] * 2)}
    if family == "audio":
        return {name: torch.randn(ROWS, 16000)}
    lengths = torch.tensor([TOKENS, TOKENS - 3, TOKENS - 5, 4])
    positions = torch.arange(TOKENS)
    mask = (positions < lengths[:, None]).long()
    ids = torch.randint(5, 60, (ROWS, TOKENS)).where(positions < lengths[:, None] - 1, 2) * mask
    if padding == "left":
        turned = (positions - (TOKENS - lengths[:, None])) % TOKENS
        ids, mask = ids.gather(1, turned), mask.gather(1, turned)
    return {name: ids, "attention_mask": mask}


def apply_heads(head_input: HeadInput, rows: Tensor) -> Tensor:
    """The logits that the heads make of features: the average of the heads, each on its part of the columns."""
    heads = head_input.heads
    parts = rows.chunk(len(heads), -1) if rows.shape[-1] > heads[0].in_features else [rows] * len(heads)
    return sum(head(part) for head, part in zip(heads, parts, strict=True)) / len(heads)  # type: ignore[return-value]


def check_features(model: nn.Module, inputs: dict[str, Tensor], head_input: HeadInput, training: bool) -> Tensor:
    """The features of one forward pass, after these checks.

    The heads make the model's logits of them, up to float32 rounding; in training, their gradient reaches the body.

    Raises:
        AssertionError: if a check fails.
    """
    torch.manual_seed(0)
    model.train(training)
    with head_input.attached():
        outputs = model(**inputs)
        rows = head_input.rows(outputs, inputs.get("attention_mask"))
    [logits] = possible_logits(outputs).values()
    if rows.ndim != 2 or len(rows) != len(logits) or not (rows != rows[:1]).any():
        raise AssertionError(f"{tuple(rows.shape)} are not features of {len(logits)} different rows")
    error = (apply_heads(head_input, rows) - logits).abs().max() / logits.abs().max()
    if not error < 1e-5:
        raise AssertionError(f"the head makes logits of the features that are off by {error:.1e}")
    if not training:
        return rows
    in_heads = {id(parameter) for head in head_input.heads for parameter in head.parameters()}
    body = [p for p in model.parameters() if p.requires_grad and id(p) not in in_heads]
    gradients = torch.autograd.grad(rows.square().sum(), body, allow_unused=True)
    if not any(gradient is not None and gradient.any() for gradient in gradients):
        raise AssertionError("no gradient reaches the body")
    return rows
