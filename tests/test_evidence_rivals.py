"""The rivals and the losses of the evidence against their formulas."""

import pytest
import torch
from methods import one_half_loss
from networks import SmallCNN, add_dropout
from rivals import (
    CentreLossTrainer,
    FloodingTrainer,
    MixupTrainer,
    RDropTrainer,
    SupConTrainer,
    centre_loss,
    flooded,
    mixed_loss,
    moved_centres,
    symmetric_kl,
)
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 1, 2, 0, 2, 2, 1])
    return {"pixel_values": torch.randn(8, 1, 8, 8, generator=generator), "labels": labels}


@pytest.fixture
def make_trainer(tmp_path):
    def make(trainer, strength=None, **options):
        torch.manual_seed(0)
        args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **options)
        model = SmallCNN(classes=3, channels=1, size=8)
        return trainer(model, args, **({} if strength is None else {"strength": strength}))

    return make


def step_loss(trainer, batch):
    trainer.model.train()
    return trainer.compute_loss(trainer.model, dict(batch))


def test_centre_loss_and_its_centres_are_the_papers():
    torch.manual_seed(0)
    features, centres, labels = torch.randn(6, 4), torch.randn(3, 4), torch.tensor([0, 0, 1, 0, 1, 1])
    expected = sum(0.5 * (x - centres[y]).square().sum() for x, y in zip(features, labels, strict=True)) / 6
    assert centre_loss(features, labels, centres) == pytest.approx(float(expected))

    moved = moved_centres(features, labels, centres, rate=0.5)
    for j in range(3):
        own = features[labels == j]
        delta = sum((centres[j] - x for x in own), torch.zeros(4)) / (1 + len(own))
        torch.testing.assert_close(moved[j], centres[j] - 0.5 * delta)


def test_centre_loss_is_added_to_the_task_loss(make_trainer, batch):
    trainer = make_trainer(CentreLossTrainer, 0.1)
    features = trainer.model.body(batch["pixel_values"])
    task = functional.cross_entropy(trainer.model.head(features), batch["labels"])
    first = task + 0.1 * centre_loss(features, batch["labels"], torch.zeros(3, 64))
    torch.testing.assert_close(step_loss(trainer, batch), first)
    centres = moved_centres(features, batch["labels"], torch.zeros(3, 64))
    second = task + 0.1 * centre_loss(features, batch["labels"], centres)
    torch.testing.assert_close(step_loss(trainer, batch), second)


def test_supervised_contrastive_loss_is_the_papers(make_trainer, batch):
    trainer = make_trainer(SupConTrainer, 0.3)
    features = trainer.model.body(batch["pixel_values"])
    z, labels, losses = functional.normalize(features), batch["labels"], []
    for i in range(8):
        others = [a for a in range(8) if a != i]
        total = torch.stack([(z[i] @ z[a] / 0.1).exp() for a in others]).sum()
        losses.append(
            -torch.stack([(z[i] @ z[p] / 0.1).exp().div(total).log() for p in others if labels[p] == labels[i]]).mean()
        )
    task = functional.cross_entropy(trainer.model.head(features), labels)
    torch.testing.assert_close(step_loss(trainer, batch), 0.7 * task + 0.3 * torch.stack(losses).mean())


def test_supervised_contrastive_loss_leaves_out_a_row_that_is_alone_in_its_class(make_trainer, batch):
    alone = {name: values[:4] for name, values in batch.items()} | {"labels": torch.tensor([0, 0, 0, 2])}
    trainer = make_trainer(SupConTrainer, 1.0)
    z, losses = functional.normalize(trainer.model.body(alone["pixel_values"])), []
    for i in range(3):  # not the fourth, which has no positive
        total = torch.stack([(z[i] @ z[a] / 0.1).exp() for a in range(4) if a != i]).sum()
        losses.append(-torch.stack([(z[i] @ z[p] / 0.1).exp().div(total).log() for p in range(3) if p != i]).mean())
    torch.testing.assert_close(step_loss(trainer, alone), torch.stack(losses).mean())


def test_r_drop_compares_two_passes_with_different_dropout(make_trainer, batch):
    torch.manual_seed(0)
    first, second = torch.randn(5, 3), torch.randn(5, 3)
    p, q = Categorical(logits=first), Categorical(logits=second)
    expected = (kl_divergence(p, q) + kl_divergence(q, p)).mean() / 2
    torch.testing.assert_close(symmetric_kl(first, second), expected)

    trainer = make_trainer(RDropTrainer, 2.0)
    task = functional.cross_entropy(trainer.model(batch["pixel_values"])["logits"], batch["labels"])
    torch.testing.assert_close(step_loss(trainer, batch), task)  # both passes are equal without dropout
    add_dropout(trainer.model, 0.5)
    torch.manual_seed(1)
    logits = trainer.model.train()(torch.cat([batch["pixel_values"]] * 2))["logits"]
    task = functional.cross_entropy(logits, batch["labels"].repeat(2))
    torch.manual_seed(1)
    torch.testing.assert_close(step_loss(trainer, batch), task + 2 * symmetric_kl(*logits.chunk(2)))


def test_mixup_trains_on_mixed_images_and_mixed_labels(make_trainer, batch):
    order, share = torch.tensor([3, 2, 1, 0, 7, 6, 5, 4]), torch.tensor(0.3)
    logits = torch.randn(8, 3)
    classes = functional.one_hot(batch["labels"], 3).float()
    soft = functional.cross_entropy(logits, share * classes + (1 - share) * classes[order])
    torch.testing.assert_close(mixed_loss(logits, batch["labels"], order, share), soft)

    trainer = make_trainer(MixupTrainer, 0.4)
    torch.manual_seed(1)
    loss = step_loss(trainer, batch)
    torch.manual_seed(1)
    order, share = torch.randperm(8), torch.distributions.Beta(0.4, 0.4).sample()
    images = share * batch["pixel_values"] + (1 - share) * batch["pixel_values"][order]
    torch.testing.assert_close(loss, mixed_loss(trainer.model(images)["logits"], batch["labels"], order, share))


def test_mixup_of_texts_mixes_the_heads_input(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(vocab_size=9, num_labels=3, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **sizes)
    model = BertForSequenceClassification(config)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = MixupTrainer(model, args, strength=0.4)
    batch = {"input_ids": torch.randint(9, (6, 4)), "labels": torch.arange(6) % 3}
    torch.manual_seed(1)
    loss = step_loss(trainer, batch)
    torch.manual_seed(1)
    order, share = torch.randperm(6), torch.distributions.Beta(0.4, 0.4).sample()
    features = model.bert(batch["input_ids"]).pooler_output
    logits = model.classifier(share * features + (1 - share) * features[order])
    torch.testing.assert_close(loss, mixed_loss(logits, batch["labels"], order, share))
    torch.testing.assert_close(model(batch["input_ids"]).logits, model.classifier(features))  # nothing stays behind


def test_flooding_climbs_below_its_level(make_trainer, batch):
    loss = torch.tensor(0.2, requires_grad=True)
    flooded(loss, 0.5).backward()
    assert flooded(loss, 0.5).item() == pytest.approx(0.8)
    assert loss.grad == -1
    trainer = make_trainer(FloodingTrainer, 5.0)
    task = functional.cross_entropy(trainer.model(batch["pixel_values"])["logits"], batch["labels"])
    torch.testing.assert_close(step_loss(trainer, batch), (task - 5).abs() + 5)


def test_label_smoothing_is_trainers(make_trainer, batch):
    trainer = make_trainer(Trainer, label_smoothing_factor=0.2)
    logits = trainer.model(batch["pixel_values"])["logits"]
    expected = functional.cross_entropy(logits, batch["labels"], label_smoothing=0.2)
    torch.testing.assert_close(step_loss(trainer, batch), expected)


def test_dropout_acts_on_the_heads_input_in_training_alone(batch):
    torch.manual_seed(0)
    model = SmallCNN(3, 1, 8)
    before = model.eval()(batch["pixel_values"])["logits"]
    add_dropout(model, 0.5)
    torch.testing.assert_close(model.eval()(batch["pixel_values"])["logits"], before)
    seen = []
    model.head.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    features = model.body(batch["pixel_values"])
    model.train()(batch["pixel_values"])
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], 2 * features[kept])
    assert 0.3 < (kept.sum() / (features != 0).sum()) < 0.7


def test_rivals_evaluate_as_trainer_does(make_trainer, batch):
    trainer = make_trainer(FloodingTrainer, 5.0)
    trainer.model.eval()
    task = functional.cross_entropy(trainer.model(batch["pixel_values"])["logits"], batch["labels"])
    torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)), task)


def test_one_half_supervised_is_the_loss_of_the_even_rows():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    even = functional.cross_entropy(logits[[0, 2, 4]], labels[[0, 2, 4]])
    torch.testing.assert_close(one_half_loss({"logits": logits}, labels), even)
