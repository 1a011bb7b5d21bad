"""Every kind of classification model gets its head's input; the full table is `benchmarks/coverage.py`."""

import copy
import re
from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from tiny_models import LABELS, apply_heads, architectures, check_features, tiny_inputs, tiny_model

from itra_hf.features import HeadNotFoundError, find_head, head_candidates

# family, model type, class, options, the heads' names, pooling
KINDS = [
    ("text", "bert", "BertForSequenceClassification", {}, ["classifier"], "row"),
    ("text", "camembert", "CamembertForSequenceClassification", {}, ["classifier.out_proj"], "row"),
    ("text", "xlm-roberta", "XLMRobertaForSequenceClassification", {"num_labels": 32}, ["classifier.out_proj"], "row"),
    ("text", "bart", "BartForSequenceClassification", {}, ["classification_head.out_proj"], "row"),
    ("text", "xlnet", "XLNetForSequenceClassification", {}, ["logits_proj"], "row"),
    ("text", "gpt2", "GPT2ForSequenceClassification", {}, ["score"], "picked"),
    ("text", "llama", "LlamaForSequenceClassification", {}, ["score"], "picked"),
    ("text", "llama", "LlamaForSequenceClassification", {"num_labels": 1}, ["score"], "picked"),
    ("text", "eurobert", "EuroBertForSequenceClassification", {}, ["classifier"], "mean"),
    (
        "text",
        "perceiver",
        "PerceiverForSequenceClassification",
        {},
        ["perceiver.decoder.decoder.final_layer"],
        "picked",
    ),
    ("image", "vit", "ViTForImageClassification", {}, ["classifier"], "row"),
    ("image", "resnet", "ResNetForImageClassification", {}, ["classifier.1"], "row"),
    ("image", "pp_lcnet", "PPLCNetForImageClassification", {}, ["head"], "row"),
    (
        "image",
        "deit",
        "DeiTForImageClassificationWithTeacher",
        {},
        ["cls_classifier", "distillation_classifier"],
        "row",
    ),
    (
        "image",
        "levit",
        "LevitForImageClassificationWithTeacher",
        {},
        ["classifier.linear", "classifier_distill.linear"],
        "row",
    ),
    ("image", "swiftformer", "SwiftFormerForImageClassification", {}, ["head", "dist_head"], "row"),
    ("audio", "wav2vec2", "Wav2Vec2ForSequenceClassification", {}, ["classifier"], "row"),
    ("audio", "audio-spectrogram-transformer", "ASTForAudioClassification", {}, ["classifier.dense"], "row"),
]
ROOT = Path(__file__).parents[1]
BY_CLASS = {kind[2]: kind for kind in KINDS}
SINCE = {"eurobert": "5.3.0", "pp_lcnet": "5.4.0"}  # the transformers that has it first, if it is not in all


def skip_before(model_type):
    tiny.needs_transformers(SINCE.get(model_type, "5.2.0"), f"it has no {model_type}")


def make(class_name, padding="right", **options):
    family, model_type, _, own_options, *_ = BY_CLASS[class_name]
    skip_before(model_type)
    model = tiny_model(model_type, class_name, **{**own_options, **options})
    return model, tiny_inputs(model, family, padding)


@pytest.mark.parametrize(
    ("family", "model_type", "class_name", "options", "heads", "pooling"), KINDS, ids=[kind[2] for kind in KINDS]
)
def test_every_kind_is_served(family, model_type, class_name, options, heads, pooling):
    skip_before(model_type)
    model = tiny_model(model_type, class_name, **options)
    names = {module: name for name, module in model.named_modules()}
    for padding in ("right", "left") if family == "text" else ("right",):
        inputs = tiny_inputs(model, family, padding)
        head_input = find_head(model, inputs)
        assert [names[head] for head in head_input.heads] == heads
        assert head_input.pooling == pooling
        for training in (False, True):
            check_features(model, inputs, head_input, training)


def test_a_class_counts_once():
    names = [name for _, _, name in architectures()]
    assert len(names) == len(set(names)) > 100


def test_the_readme_tells_the_numbers_of_the_page():
    readme, page = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/coverage.md"))
    verdicts = re.findall(r"^\| \w+For.*\| (served|refused|not built).* \|$", page, re.MULTILINE)
    choices = int(re.search(r"The (\d+) classes of AutoModelForMultipleChoice are\s+refused", page).group(1))
    told = re.search(r"(\d+) model classes work, (\d+) cannot be matched, (\d+) not tried", readme)
    assert [int(number) for number in told.groups()] == [
        verdicts.count("served"),
        verdicts.count("refused") + choices,
        verdicts.count("not built"),
    ]


def test_a_model_without_a_linear_head_is_refused_with_the_way_out():
    model = tiny_model("shieldgemma2", "ShieldGemma2ForImageClassification")
    with pytest.raises(HeadNotFoundError, match=r"ShieldGemma2ForImageClassification .*name the classifier by"):
        find_head(model, tiny_inputs(model, "image"))


def test_finding_the_head_leaves_model_and_random_state_as_they_were():
    model, inputs = make("GPT2ForSequenceClassification")
    model.train().transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    weights, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    find_head(model, inputs)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "class_name",
    ["LlamaForSequenceClassification", "EuroBertForSequenceClassification", "DeiTForImageClassificationWithTeacher"],
)
def test_bfloat16_autocast(class_name):
    model, inputs = make(class_name)
    with torch.autocast("cpu", torch.bfloat16):
        head_input = find_head(model, inputs)
        with head_input.attached():
            outputs = model(**inputs)
            rows = head_input.rows(outputs, inputs.get("attention_mask"))
        logits = outputs["logits"].float()
        error = (apply_heads(head_input, rows).float() - logits).abs().max()
    assert error < 0.02 * logits.abs().max()


@pytest.mark.parametrize("class_name", ["DeiTForImageClassificationWithTeacher", "LlamaForSequenceClassification"])
def test_a_model_compiled_after_the_hook_gives_the_same_features(class_name):
    model, inputs = make(class_name)
    head_input = find_head(model, inputs)
    with head_input.attached():
        rows = [
            head_input.rows(forward(**inputs), inputs.get("attention_mask"))
            for forward in (model, torch.compile(model, backend="aot_eager"))
        ]
    torch.testing.assert_close(rows[0], rows[1])


@pytest.mark.parametrize("class_name", ["LlamaForSequenceClassification", "BertForSequenceClassification"])
def test_lora_around_the_head(class_name):
    model, inputs = make(class_name)
    head = BY_CLASS[class_name][4][0]
    lora = LoraConfig(r=LABELS, target_modules=[head, "query", "q_proj"], init_lora_weights=False, lora_dropout=0.0)
    model = get_peft_model(model, lora)
    head_input = find_head(model, inputs)
    assert head_input.head is model.get_submodule(f"base_model.model.{head}")
    for training in (False, True):
        check_features(model, inputs, head_input, training)


@pytest.mark.parametrize("class_name", ["LlamaForSequenceClassification", "BertForSequenceClassification"])
def test_head_in_modules_to_save(class_name):
    model, inputs = make(class_name)
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=LABELS, target_modules=["query", "q_proj"], init_lora_weights=False)
    model = get_peft_model(model, lora)
    head_input = find_head(model, inputs)
    assert head_input.head.weight.requires_grad
    check_features(model, inputs, head_input, True)


@pytest.mark.parametrize("class_name", ["LlamaForSequenceClassification", "EuroBertForSequenceClassification"])
def test_a_prompt_before_the_text(class_name):
    model, inputs = make(class_name)
    prompt = PromptTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=3)
    model = get_peft_model(model, prompt)
    head_input = find_head(model, inputs)
    rows = check_features(model, inputs, head_input, False)
    assert rows.shape == (4, 32)


def test_lora_matrices_are_no_head():
    model, _ = make("BertForSequenceClassification")
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, target_modules=["classifier"]))
    names = {module: name for name, module in adapted.named_modules()}
    assert "base_model.model.classifier" in [names[head] for head in head_candidates(adapted)]
    assert "base_model.model.classifier.base_layer" not in [names[head] for head in head_candidates(adapted)]
