"""Where the two gradients meet: whole runs against a slow reference that asks autograd for each gradient by itself."""

import copy
from types import SimpleNamespace

import pytest
import reference
import tiny
import torch
from tiny_models import tiny_inputs, tiny_model
from torch import nn
from transformers import default_data_collator

from itra_hf.step.meeting import Cap, Meeting

STEPS, RATE, WEIGHT, RATIO = 6, 0.1, 3.0, 10.0


def reference_run(case, model, rows, accumulation=1, whole=False, ratio=RATIO, warmup=0.0, batch_size=8, again=1):
    """Plain SGD on task loss plus weighted MMD^2; returns what a run logs in each step.

    The Trainer of transformers 5.2 lets accelerate divide an accumulated loss `again` by its steps.
    """
    seen, logs = [], []
    module = case.module(model)
    if case.hidden:
        module.register_forward_hook(lambda module, args, output: seen.append(output))
    else:
        module.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    batches = [default_data_collator(rows[at : at + batch_size]) for at in range(0, len(rows), batch_size)]
    batches = (batches * STEPS * accumulation)[: STEPS * accumulation]
    for step in range(STEPS):
        passes = []
        for batch in batches[step * accumulation : (step + 1) * accumulation]:
            logits = model(**batch)["logits"]
            grown = 1 if isinstance(model, tiny.Mlp) else accumulation  # BERT and its like ignore num_items_in_batch
            passes.append((case.task(logits, batch["labels"]) * grown, seen.pop(), logits, batch["labels"]))
        groups = [passes] if whole else [[each] for each in passes]
        ramp = min(1.0, step / (warmup * STEPS)) if warmup else 1.0
        model.zero_grad()
        values, weights = [], []
        for group in groups:
            task = sum(each[0] for each in group) / len(group)
            features = torch.cat([case.pool(each[1]) for each in group])
            labels = torch.cat([each[3] for each in group])
            even, odd = reference.dealt(labels) if case.deals else (slice(0, None, 2), slice(1, None, 2))
            value = case.matching(features[even], features[odd], labels[even], labels[odd]).float()
            inputs = [each[1] for each in group]
            norms = [
                torch.cat([part.flatten() for part in torch.autograd.grad(loss, inputs, retain_graph=True)]).norm()
                for loss in (task, value)
            ]
            opening = case.opening(torch.cat([each[2] for each in group]), labels)
            weight = WEIGHT * ramp
            if ratio is not None and norms[1] > 0:
                weight = min(weight, float(ratio * opening * norms[0] / norms[1]))
            ((task + weight * value) / len(groups)).backward()
            values.append(value.item())
            weights.append(weight)
        logs.append(
            {
                "task_loss": sum(each[0].item() for each in passes) / accumulation,
                "matching_loss": sum(values) / len(values),
                "matching_weight": sum(weights) / len(weights),
            }
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= RATE / again * (0 if parameter.grad is None else parameter.grad)
    return logs


def by_odds(logits, labels):
    right = logits.softmax(-1).gather(1, labels[:, None]).mean().item()
    return min(1.0, max(0.0, (logits.shape[1] * right - 1) / (1 - right) / 40))


def case(make, rows, module, pool=lambda full: full, matching=reference.class_conditional, hidden=False, **others):
    kind = {"task": nn.functional.cross_entropy, "opening": by_odds, "options": {}, "keywords": {}}
    kind["deals"] = matching is reference.class_conditional
    return SimpleNamespace(
        make=make, rows=rows, module=module, pool=pool, matching=matching, hidden=hidden, **kind | others
    )


def mlp(**others):
    return case(tiny.Mlp, tiny.vectors, lambda model: model.head, **others)


def bert(config=None, rows=tiny.texts, **others):
    return case(lambda: tiny.bert(0.0, **config or {}), rows, others.pop("module", lambda m: m.classifier), **others)


def eurobert():
    tiny.needs_transformers("5.3", "it has no EuroBERT")
    return tiny_model("eurobert", "EuroBertForSequenceClassification", num_labels=tiny.NUM_LABELS)


def gpt2():
    return tiny.gpt2(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)


def swiftformer():
    return tiny_model("swiftformer", "SwiftFormerForImageClassification", num_labels=tiny.NUM_LABELS)


def pictures():
    torch.manual_seed(0)
    pixels = torch.cat([tiny_inputs(swiftformer(), "image")["pixel_values"] for _ in range(6)])
    return [{"pixel_values": image, "labels": row % tiny.NUM_LABELS} for row, image in enumerate(pixels)]


def labelled(label):
    return lambda: [row | {"labels": torch.tensor(label(index))} for index, row in enumerate(tiny.texts())]


def smoothed(logits, labels):
    return nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)


def energy(source, target, source_labels, target_labels):
    return ((source[:, None] - target[None]).square().sum(-1) * (source_labels[:, None] + 1)).mean()


def joint(kernel):
    return lambda *pair: reference.joint(*pair, kernel=kernel)


def bce(logits, labels):
    return nn.functional.binary_cross_entropy_with_logits(logits, labels)


def mse(logits, labels):
    return nn.functional.mse_loss(logits[:, 0], labels)


def quarter(logits, labels):
    return 0.25


MANY = {"problem_type": "multi_label_classification"}
CASES = {
    "class-conditional": mlp(),
    "marginal": mlp(matching=lambda s, t, ys, yt: reference.marginal(s, t), options={"matching": "marginal"}),
    "joint": mlp(matching=joint("delta"), deals=True, options={"matching": "joint"}),
    "multi-label": bert(
        MANY, labelled(lambda i: [i % 2, 1.0, i // 2 % 2]), matching=joint("linear"), task=bce, opening=quarter
    ),
    "regression": bert(
        {"num_labels": 1}, labelled(lambda i: i / 70), matching=joint("gaussian"), task=mse, opening=quarter
    ),
    "own loss": mlp(matching=energy, keywords={"matching_loss": energy}),
    "label smoothing": bert(task=smoothed, options={"label_smoothing_factor": 0.2}),
    "compute_loss_func": bert(
        task=smoothed,
        keywords={
            "compute_loss_func": lambda outputs, labels, num_items_in_batch=None: smoothed(outputs.logits, labels)
        },
    ),
    "picked token": case(gpt2, tiny.texts, lambda model: model.score, lambda full: full[:, -1]),
    "mean over tokens": case(eurobert, tiny.texts, lambda model: model.classifier, lambda full: full.mean(1)),
    "two heads": case(swiftformer, pictures, lambda model: model.head),
    "hidden state": bert(
        module=lambda m: m.bert.encoder.layer[0],
        pool=lambda state: state.mean(1),
        hidden=True,
        options={"feature_layer": 1},
    ),
    "resnet": case(tiny.resnet, tiny.images, lambda model: model.classifier[-1]),
}
GUARDS = {
    "cap": {},
    "no cap": {"ratio": None},
    "ramp": {"warmup": 0.5},
    "accumulation": {"accumulation": 3},
    "whole step": {"accumulation": 3, "whole": True},
    "odd batch": {"batch_size": 5},
}
RUNS = [(name, "cap", None) for name in CASES]
RUNS += [("class-conditional", guard, None) for guard in GUARDS if guard != "cap"]
RUNS += [
    ("picked token", "whole step", None),
    ("mean over tokens", "whole step", None),
    ("hidden state", "whole step", None),
]
RUNS += [
    (name, "cap", "aot_eager") for name in ("class-conditional", "own loss", "label smoothing", "compute_loss_func")
]
RUNS += [(name, "cap", "aot_eager") for name in ("picked token", "mean over tokens", "two heads", "hidden state")]


@pytest.mark.parametrize(("name", "guard", "backend"), RUNS)
def test_a_run_ends_where_two_gradients_asked_of_autograd_would_end_it(tmp_path, name, guard, backend):
    torch._dynamo.reset()
    torch.manual_seed(0)
    case, settings = CASES[name], GUARDS[guard]
    model, rows = case.make(), case.rows()
    if case.opening is by_odds:  # labels that the model gives itself, for the cap opens with what is learned
        rows = tiny.guessed(model, rows)
    start, twin = tiny.weights(model), copy.deepcopy(model)
    options = {"per_device_train_batch_size": settings.get("batch_size", 8), "max_steps": STEPS, "logging_steps": 1}
    options |= {"optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    options |= {"train_sampling_strategy": "sequential", "matching_weight": WEIGHT, "pairing": "random"}
    options |= {"matching_max_grad_ratio": settings.get("ratio", RATIO), "torch_compile_backend": backend}
    options |= {"matching_warmup_ratio": settings.get("warmup", 0.0)}
    options |= {"gradient_accumulation_steps": settings.get("accumulation", 1)}
    options |= {"matching_scope": "optimizer_step" if settings.get("whole") else "micro_batch"}
    run = tiny.trainer(tmp_path, model, rows, keywords=case.keywords, **options | case.options)
    run.train()
    again = run.accelerator.gradient_accumulation_steps
    logs = reference_run(case, twin.train(), rows, again=again, **settings)
    expected = tiny.weights(twin)
    way = (expected - start).norm()
    assert (tiny.weights(run.model) - expected).norm() < 1e-5 * way
    for key in ("task_loss", "matching_loss", "matching_weight"):
        expected = [log[key] for log in logs if log["matching_loss"] > 0]  # others had nothing to match
        assert tiny.logs_of(run, key) == pytest.approx(expected, rel=1e-4, abs=1e-7), key
    if guard == "cap":
        assert any(0 < log["matching_weight"] < WEIGHT for log in logs)  # the cap is at work


class Asking(tiny.ITRATrainer):
    """Takes a gradient of its own, which passes the features, before the backward pass."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        own, twin = model.body[0].weight, copy.deepcopy(model)
        (ours,) = torch.autograd.grad(outputs["logits"].square().sum(), own, retain_graph=True)
        (theirs,) = torch.autograd.grad(twin(inputs["x"])["logits"].square().sum(), twin.body[0].weight)
        self.pairs = [*getattr(self, "pairs", []), (ours, theirs)]
        return (loss, outputs) if return_outputs else loss


def test_a_gradient_that_the_user_asks_for_is_left_alone(tmp_path):
    options = {"matching_weight": 5.0, "matching_max_grad_ratio": None, "matching_warmup_ratio": 0.0}
    run = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), Asking, **options)
    run.train()
    assert len(run.pairs) == 4
    for ours, theirs in run.pairs:
        torch.testing.assert_close(ours, theirs)
    assert tiny.logs_of(run, "matching_weight") == [5, 5]


class Penalised(tiny.ITRATrainer):
    """Adds the squared norm of a gradient of its loss, as a gradient penalty does."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if torch.is_grad_enabled():
            (gradient,) = torch.autograd.grad(loss, model.body[0].weight, create_graph=True)
            loss = loss + 10 * gradient.square().sum()
        return (loss, outputs) if return_outputs else loss


def test_a_gradient_penalty_keeps_its_graph(tmp_path):
    start, ended = tiny.Mlp(), []
    for changes in ({"matching": "none"}, {"matching_weight": 1e-12}):
        options = {"optim": "sgd", "learning_rate": 0.1, "pairing": "random", "matching_warmup_ratio": 0.0} | changes
        run = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.vectors(), Penalised, **options)
        run.train()
        ended.append(tiny.weights(run.model))
    way = (ended[0] - tiny.weights(start)).norm()
    assert (ended[0] - ended[1]).norm() < 1e-5 * way
    assert len(tiny.logs_of(run, "matching_loss")) == 2


def test_half_precision_gradients_do_not_overflow_the_cap():
    h = torch.tensor([[300.0, 400.0]], dtype=torch.float16, requires_grad=True)
    meeting = Meeting([h], [torch.tensor([[3.0, 4.0]])], Cap(1000.0, torch.tensor([80.0, 1.0])))
    meeting.term((h * h.detach()).sum().float()).backward()
    assert meeting.weight == 100  # both norms are finite: 500 for the task's, 5 for the matching's
    assert torch.equal(h.grad, torch.tensor([[600.0, 800.0]], dtype=torch.float16))


@pytest.mark.parametrize("factor", [1.0, 8.0, 0.25])
def test_the_weight_is_blind_to_the_factor_of_the_loss(factor):
    h = torch.tensor([[3.0, 4.0]], requires_grad=True)
    meeting = Meeting([h], [torch.tensor([[0.0, 10.0]])], Cap(1.0, torch.tensor([80.0, 1.0])))
    (factor * meeting.term(h.square().sum() / 2)).backward()
    assert meeting.weight == pytest.approx(0.5)
    torch.testing.assert_close(h.grad, factor * torch.tensor([[3.0, 4.0 + 0.5 * 10]]))


def test_a_loss_that_does_not_reach_the_features_leaves_them_alone():
    h, other = torch.zeros(1, 2, requires_grad=True), torch.ones((), requires_grad=True)
    meeting = Meeting([h], [torch.tensor([[0.0, 1.0]])], Cap(2.0))
    meeting.term(other * 2).backward()
    assert (other.grad, h.grad, meeting.weight) == (2, None, 0)


def test_frozen_features_are_left_alone(tmp_path):
    model = tiny.bert()
    model.bert.requires_grad_(False)
    start = copy.deepcopy(model)
    runs = []
    for matching in ("none", "auto"):
        options = {"matching": matching, "pairing": "random", "matching_warmup_ratio": 0.0}
        run = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), **options)
        run.train()
        runs.append(run)
    assert torch.equal(tiny.weights(runs[0].model), tiny.weights(runs[1].model))
    assert tiny.logs_of(runs[1], "matching_weight") == [0, 0]


def test_the_loss_may_be_changed_in_place(tmp_path):
    class Doubled(tiny.ITRATrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            loss *= 2
            return loss

    run = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), Doubled)
    run.train()
    assert all(value > 0 for value in tiny.logs_of(run, "matching_loss"))
