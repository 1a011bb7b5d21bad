"""The benchmark of the evidence: rivals against their formulas, fair runs, honest statistics, resuming."""

import gzip
import json
import math
from collections import Counter
from statistics import mean, stdev

import numpy as np
import pytest
import run as command
import runs
import tasks
import torch
from contrast import contrastive_discrepancy
from forest import main_forest, methods_forest
from measures import expected_calibration_error, nc1
from methods import METHODS, one_half_loss, settings
from networks import (
    ENCODERS,
    SmallCNN,
    add_dropout,
    build_network,
    collate_states,
    find_head,
    frozen_states,
    load_tokenizer,
)
from on_ranks import launch
from one_run import Run, execute
from pairs import compare, holm
from plan import ABLATION_METHODS, FOR_FEW_ROWS, FOR_MANY_ROWS, MAIN, OTHERS
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
from runs import HERE, planned, run_all
from scipy import stats
from summarise import ROOT, by_method, current, headline, page, readme_with
from tables import family, gain_cells, tried_table, tuned_table
from targets import targets
from tasks import Task
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional
from transformers import Trainer, TrainingArguments
from tune import best

from itra_hf import ClassPairedSampler, guards, losses


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


def test_the_contrast_pushes_different_classes_apart():
    generator = torch.Generator().manual_seed(1)
    source, target = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    own, other = torch.tensor([0, 0, 1, 2, 2, 4, 1]), torch.tensor([1, 0, 2, 0, 1, 5, 2])
    z = torch.cat([source, target])
    bandwidth = mean([(a - b).square().sum().item() for i, a in enumerate(z) for j, b in enumerate(z) if i != j])

    def k(a, b):
        return mean(math.exp(-(a - b).square().sum().item() / (2.0**q * bandwidth)) for q in range(-2, 3))

    def discrepancy(c, other_c):
        x, y = source[own == c], target[other == other_c]
        inside = sum(mean(k(a, b) for a in rows for b in rows) for rows in (x, y))
        return inside - 2 * mean(k(a, b) for a in x for b in y)

    same = mean(discrepancy(c, c) for c in (0, 1, 2))
    apart = mean(discrepancy(c, other_c) for c in (0, 1, 2) for other_c in (0, 1, 2) if c != other_c)
    for contrast in (0.0, 0.5):
        value = contrastive_discrepancy(source, target, own, other, contrast).item()
        assert value == pytest.approx(same - contrast * apart, rel=1e-5)
    assert same == pytest.approx(losses.class_conditional_mmd(source, target, own, other).item(), rel=1e-5)


def test_expected_calibration_error_of_a_worked_example():
    probabilities = torch.tensor([[0.95, 0.05], [0.94, 0.06], [0.4, 0.6], [0.3, 0.7]])
    labels = torch.tensor([0, 1, 1, 1])
    # bins of 1/15: (0.933, 1] holds 0.95 and 0.94, one of them right; 0.6 and 0.7 stand alone, both right
    expected = 0.5 * abs(0.5 - 0.945) + 0.25 * 0.4 + 0.25 * 0.3
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)


def test_nc1_is_the_papers():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, 5)), np.repeat([0, 1, 2], 10)
    means = np.stack([features[labels == c].mean(0) for c in range(3)])
    within = sum(np.outer(x - means[c], x - means[c]) for x, c in zip(features, labels, strict=True)) / 30
    between = sum(np.outer(m - means.mean(0), m - means.mean(0)) for m in means) / 3
    expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 3
    assert nc1(torch.from_numpy(features), torch.from_numpy(labels)) == pytest.approx(expected)


def test_seeds_draw_balanced_rows_and_validation_is_kept_apart():
    task = Task("digits-100/cnn")
    data = task.load({})
    train, measured = task.draw(data, seed=3, validation=False)
    again, held_out = task.draw(data, seed=3, validation=True)
    ids = [[id(row) for row in rows] for rows in (train, measured, again, held_out, data.test)]
    assert ids[0] == ids[2]
    assert ids[1] == ids[4]
    assert not set(ids[3]) & (set(ids[0]) | set(ids[4]))
    assert np.bincount([row["labels"] for row in train]).tolist() == [10] * 10
    assert [id(row) for row in task.draw(data, seed=4, validation=False)[0]] != ids[0]
    everything, kept = Task("digits-all/cnn").draw(data, seed=3, validation=True)
    assert len(everything) + len(kept) == len(data.pool)
    assert not {id(row) for row in everything} & {id(row) for row in kept}


def write_idx(folder, split, images, labels, compress):
    for kind, values, header in (("images-idx3", images, 16), ("labels-idx1", labels, 8)):
        content = bytes(header) + np.asarray(values, dtype=np.uint8).tobytes()
        path = folder / f"{split}-{kind}-ubyte{'.gz' if compress else ''}"
        path.write_bytes(gzip.compress(content) if compress else content)


@pytest.mark.parametrize("compress", [True, False])
def test_images_come_from_idx_files(tmp_path, compress):
    images = np.zeros((2, 28, 28))
    images[1, 3, 4] = 255
    write_idx(tmp_path, "train", images, [7, 9], compress)
    write_idx(tmp_path, "t10k", images[:1], [1], compress)
    data = Task("kmnist-300/cnn").load({"kmnist": str(tmp_path)})
    assert [row["labels"] for row in data.pool + data.test] == [7, 9, 1]
    assert data.classes == 10
    assert data.pool[1]["pixel_values"].shape == (1, 28, 28)
    assert data.pool[1]["pixel_values"].unique().tolist() == [-1, 1]
    assert data.pool[1]["pixel_values"][0, 3, 4] == 1


def test_texts_come_from_csv_and_tsv_files(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text('text,category\n"Hello, world",b\nhello,a\n')
        (tmp_path / f"{split}.tsv").write_text("hello\t1\nhello world\t0\n")
    intents = Task("banking77-5shot/minilm").load({"banking77": str(tmp_path)})
    moods = Task("sst2-all/minilm").load({"sst2": str(tmp_path)})
    assert [row["labels"] for row in intents.pool] == [1, 0]
    assert [row["labels"] for row in moods.test] == [1, 0]
    assert intents.pool[1]["input_ids"] == moods.pool[0]["input_ids"]
    batch = intents.collator(intents.pool)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"].sum(1).tolist() == [5, 3]


def test_without_files_data_come_from_the_hub(monkeypatch):
    image = np.full((8, 8, 3), 255, dtype=np.uint8)
    splits = {"train": [image, 0 * image], "test": [image]}
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return {"img": splits[split], "fine_label": list(range(len(splits[split])))}

    monkeypatch.setattr(tasks, "load_dataset", load_dataset)
    data = Task("cifar100-1000/resnet").load({})
    assert asked == [("uoft-cs/cifar100", "train"), ("uoft-cs/cifar100", "test")]
    assert data.pool[0]["pixel_values"].shape == (3, 8, 8)
    assert [row["pixel_values"].mean().item() for row in data.pool] == [1, -1]
    with pytest.raises(ValueError, match="no data set 'moon'"):
        Task("moon-100/cnn").load({})


@pytest.mark.parametrize(
    "network", ["cnn", "resnet", "resnet_groupnorm", "vit", "minilm", "minilm-lora", "minilm-last2"]
)
def test_networks_have_a_head_for_every_class(network):
    row = {"pixel_values": torch.zeros(1, 28, 28)}
    model = build_network(network, 7, row)
    text = {"input_ids": torch.tensor([[101, 7592, 102]])}
    if network == "minilm-last2":
        text = {"inputs_embeds": torch.randn(1, 3, 384)}
    inputs = text if "minilm" in network else {"pixel_values": torch.randn(2, 1, 28, 28)}
    seen = []
    find_head(model).register_forward_hook(lambda *call: seen.append(call[2]))
    assert model.eval()(**inputs)["logits"] is seen[-1]
    assert seen[-1].shape[1] == 7
    trained = {name for name, weights in model.named_parameters() if weights.requires_grad}
    parts = {"minilm-lora": ("lora_", "classifier")}
    expected = parts.get(network, ("",))
    assert trained == {name for name, _ in model.named_parameters() if any(part in name for part in expected)} - {
        "base_model.model.classifier.original_module.weight",
        "base_model.model.classifier.original_module.bias",
    }


def test_group_norm_takes_the_place_of_batch_norm_alone():
    row = {"pixel_values": torch.zeros(1, 28, 28)}
    models = []
    for name in ("resnet", "resnet_groupnorm"):
        torch.manual_seed(0)
        models.append(build_network(name, 7, row))
    norms = [Counter(type(module).__name__ for module in model.modules()) for model in models]
    assert norms[0]["BatchNorm2d"] == norms[1]["GroupNorm"] > 0
    assert norms[1]["BatchNorm2d"] == norms[0]["GroupNorm"] == 0
    weights = [{n: w for n, w in model.named_parameters() if "normalization" not in n} for model in models]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    images = torch.randn(4, 1, 28, 28)
    together = models[1](images)["logits"]
    torch.testing.assert_close(models[1](images[:1])["logits"], together[:1])  # a row does not see the others
    assert (models[0](images[:1])["logits"] - models[0](images)["logits"][:1]).abs().max() > 1e-3


def test_the_last_layers_on_frozen_states_are_the_whole_encoder():
    texts = ["one two three four five", "six", "seven eight"]
    tokens = load_tokenizer(ENCODERS["minilm"])(texts)
    rows = [{"input_ids": ids, "labels": label} for label, ids in enumerate(tokens["input_ids"])]
    batch = collate_states(frozen_states(ENCODERS["minilm"], rows))
    whole, last = (build_network(name, 3, {}).eval() for name in ("minilm", "minilm-last2"))
    last.classifier.load_state_dict(whole.classifier.state_dict())
    padded = load_tokenizer(ENCODERS["minilm"])(texts, padding=True, return_tensors="pt")
    expected = whole(**padded, labels=batch["labels"])
    torch.testing.assert_close(last(**batch)["logits"], expected["logits"], atol=1e-5, rtol=0)
    assert len(last.bert.encoder.layer) == 2


def test_all_methods_start_from_the_same_weights_and_take_the_same_steps():
    task, scores = Task("digits-100/cnn"), {}
    tuned = {name: {m.knob: m.grid[0]} for name, m in METHODS.items() if m.knob}
    for name in (*METHODS, *ABLATION_METHODS):
        chosen = settings(task, name, tuned, {"learning_rate": 0.0, "max_steps": 2})
        rows = 16 if name == "half_batch" else 32
        assert chosen["per_device_train_batch_size"] == rows
        row = execute(Run(task.name, name, 5, "test", chosen), {})
        scores[name] = (row["accuracy"], row["loss"], row["nc1"], row["train_loss"])
    assert len(set(scores.values())) == 1, scores
    moved = execute(Run(task.name, "itra", 5, "test", settings(task, "itra", {}, {"max_steps": 2})), {})
    half = {"max_steps": 2, "one_half": True}
    half_moved = execute(Run(task.name, "itra", 5, "test", settings(task, "itra", {}, half)), {})
    assert len({scores["itra"][1], moved["loss"], half_moved["loss"]}) == 3


def test_two_ranks_share_the_batch_of_one():
    options = {"max_steps": 20, "learning_rate": 0.01}
    one, two = (
        Run("digits-300/cnn", name, 0, "test", settings(Task("digits-300/cnn"), name, {}, options))
        for name in ("itra", "itra:ranks=2")
    )
    assert launch(two, {})["loss"] == pytest.approx(execute(one, {})["loss"], rel=1e-4)


def test_a_killed_benchmark_goes_on_where_it_stopped(tmp_path, monkeypatch):
    results = tmp_path / "results.jsonl"
    methods = ["trainer:max_steps=1", "itra:max_steps=1"]
    first = run_all(planned(["digits-100/cnn"], methods, [0], "test"), results, {}, 1)
    lines = results.read_text().splitlines(keepends=True)
    assert len(lines) == len(first) == 2
    results.write_text(lines[0] + lines[1][:40])
    executed = []

    def execute_and_count(run, folders):
        executed.append(run.method)
        return {**run._asdict(), "accuracy": 1.0}

    class OneProcess:
        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def imap_unordered(self, function, jobs):
            return map(function, jobs)

    monkeypatch.setattr(runs, "execute", execute_and_count)
    monkeypatch.setattr(runs.multiprocessing, "get_context", lambda kind: type("Context", (), {"Pool": OneProcess}))
    second = run_all(planned(["digits-100/cnn"], methods, [0], "test"), results, {}, 1)
    assert executed == [json.loads(lines[1])["method"]]
    assert results.read_text().splitlines(keepends=True)[0] == lines[0]
    assert {row["method"] for row in second} == set(methods)


def test_without_methods_all_are_run_and_the_ablations_on_their_tasks(monkeypatch):
    asked = []

    def note(runs, results, folders, workers):
        asked.extend(runs)
        return []

    monkeypatch.setattr(command, "run_all", note)
    monkeypatch.setattr(command, "print_means", list)
    every = {name: {m.knob: m.grid[0]} for name, m in METHODS.items() if m.knob}
    tasks = ("digits-100/cnn", "digits-300/cnn", "fashion_mnist-all/cnn")
    monkeypatch.setattr(runs, "read_tuned", lambda: dict.fromkeys(tasks, every))
    command.main(["--tasks", *tasks, "--seeds", "0"])
    done = {task: {run.method for run in asked if run.task == task} for task in tasks}
    assert done == {
        tasks[0]: set(METHODS),
        tasks[1]: {*METHODS, *FOR_FEW_ROWS},
        tasks[2]: {*METHODS, *FOR_MANY_ROWS},
    }
    asked.clear()
    command.main(["--tasks", tasks[1], "--methods", "trainer", "--seeds", "0"])
    assert [run.method for run in asked] == ["trainer"]


def test_changed_settings_are_run_anew():
    task = Task("digits-100/cnn")
    plain, heavier = (
        Run(task.name, "itra", 0, "test", settings(task, "itra", {}, overrides))
        for overrides in ({}, {"matching_weight": 2.0})
    )
    assert plain.key != heavier.key
    assert plain.settings["matching_max_grad_ratio"] is not None  # defaults are part of the key


@pytest.mark.parametrize("name", ["r_drop", "itra+dropout", "itra_tuned"])
def test_a_knob_without_a_value_is_an_error_and_no_run_without_it(name):
    with pytest.raises(ValueError, match="--tune"):
        settings(Task("digits-100/cnn"), name, {}, {})


def test_tuning_takes_the_lowest_loss_of_those_as_accurate_as_the_best():
    grid = [{"lr": 1}, {"lr": 2}, {"lr": 3}, {"lr": 4}]
    scores = {1: ((0.90, 0.90), 0.5), 2: ((0.93, 0.85), 0.4), 3: ((0.89, 0.89), 0.1), 4: ((0.94, 0.80), 0.6)}
    rows = [
        {"settings": {"lr": lr, "other": 0}, "seed": seed, "accuracy": accuracy, "loss": loss}
        for lr, (accuracies, loss) in scores.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    # lr 2 is 0.01 behind lr 1 with a standard error of 0.04; lr 3 is 0.01 behind for sure
    assert best(rows, grid) == {"lr": 2}
    assert best(rows[:2] + rows[4:6], [grid[0], grid[2]]) == {"lr": 1}


def test_paired_differences_have_t_intervals():
    ours, theirs = [0.92, 0.95, 0.91, 0.94], [0.90, 0.94, 0.91, 0.92]
    result = compare(dict(enumerate(ours)), dict(enumerate(theirs)))
    differences = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    half = stats.t.ppf(0.975, 3) * stdev(differences) / math.sqrt(4)
    assert (result.gain, result.low, result.high) == pytest.approx(
        (mean(differences), mean(differences) - half, mean(differences) + half)
    )
    assert result.p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert (result.wins, result.ties, result.losses) == (3, 1, 0)


def test_one_seed_has_no_interval():
    assert gain_cells(compare({0: 0.5}, {0: 0.25}), 1.0)[0] == "+25.00"


def test_only_seeds_of_both_are_compared():
    result = compare({0: 0.5, 1: 0.6, 2: 0.9}, {0: 0.4, 1: 0.6, 3: 0.1})
    assert result.gain == pytest.approx(5.0)
    assert result.seeds == 2


def test_holms_correction_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])


def test_the_page_says_what_the_results_say(tmp_path):
    rows = []
    for method, level in (("trainer", 0.80), ("itra", 0.82), ("dropout", 0.81)):
        for run in planned(["digits-100/cnn"], [method], list(range(4)), "test"):
            measures = dict.fromkeys(("macro_f1", "ece", "nc1", "scatter", "step_seconds", "memory"), 0.5)
            accuracy = level + run.seed * (0.002 if method == "itra" else 0.0)
            rows.append({**run._asdict(), "machine": "an abacus", "accuracy": accuracy, "loss": 1 - level, **measures})
    stale = {**rows[4], "accuracy": 0.1, "settings": {**rows[4]["settings"], "matching_weight": 7.0}}
    tuning = {**rows[4], "accuracy": 0.1, "split": "validation"}
    results = tmp_path / "results.jsonl"
    unreported = {**rows[4], "accuracy": 0.1, "seed": 100}
    results.write_text("".join(json.dumps(row) + "\n" for row in [*rows, stale, tuning, unreported]))
    text = page(current(results))
    # gains of 2.0, 2.2, 2.4 and 2.6 points: mean 2.3, standard error 0.1291, t of 3 degrees of freedom 3.182
    assert "| digits-100/cnn | 4 | 80.0 ± 0.0 | 82.3 ± 0.3 | +2.30 (+1.89 to +2.71) |" in text
    assert "| 4 / 0 / 0 | -10 % |" in text
    assert "- better: digits-100/cnn (+2.30)" in text
    assert "| dropout | 4 | 81.00 ± 0.00 | +1.00" in text
    assert "ran with one thread a run on: an abacus." in text
    assert "+2.30 points on average" in headline(current(results))


def test_what_was_tried_is_compared_with_trainer_at_the_same_options(tmp_path):
    names = ["trainer", "trainer:label_smoothing_factor=0.1", "itra:label_smoothing_factor=0.1,matching_weight=3"]
    rows = []
    for level, name in enumerate(names):
        for run in planned(["digits-100/cnn"], [name], [100, 101], "validation"):
            accuracy = 0.8 + level / 100 + run.seed % 2 / 1000 * level
            rows.append({**run._asdict(), "accuracy": accuracy, "loss": 1.0 + level, "ece": 0.5, "scatter": 0.5})
    results = tmp_path / "tried.jsonl"
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = tried_table(by_method(results))
    # gains of 1.0 and 1.1 points; standard error 0.05, t of one degree of freedom 12.706
    assert f"| `{names[2]}` | `{names[1]}` | 2 | +1.05 (+0.41 to +1.69) | 2 / 0 / 0 | +50 % | +0 % |" in lines[3]
    assert len([line for line in lines if line]) == 4  # and a row for label smoothing alone, and the head


def test_what_was_tuned_stands_with_its_seeds():
    runs_of = {"trainer": {100: {}, 101: {}}, "dropout": {100: {}}}
    chosen = {"trainer": {"learning_rate": 0.02, "weight_decay": 1.0}, "dropout": {"dropout": 0.3}}
    lines = tuned_table({"digits-100/cnn": chosen}, {"digits-100/cnn": runs_of})[2:]
    assert "| digits-100/cnn | trainer | learning_rate 0.02, weight_decay 1 | 2 |" in lines
    assert "| digits-100/cnn | dropout | dropout 0.3 | 1 |" in lines


def test_targets_are_held_against_what_came_out():
    def seeds(*accuracies, **measures):
        return {seed: {"accuracy": value, **measures} for seed, value in enumerate(accuracies)}

    plain = {"loss": 1.0, "scatter": 0.4}
    results = {
        "digits-100/cnn": {
            "trainer": seeds(0.900, 0.910, **plain),
            "itra": seeds(0.904, 0.914001, loss=0.84, scatter=0.31),
        },
        "banking77-5shot/minilm-last2": {
            "trainer": seeds(0.75, 0.76),
            "itra": seeds(0.76, 0.772),
            "label_smoothing": seeds(0.77, 0.77),
            "itra+label_smoothing": seeds(0.77, 0.78),
        },
        "sst2-200/minilm-last2": {"trainer": seeds(0.80, 0.82), "itra": seeds(0.80, 0.813)},
        "fashion_mnist-all/cnn": {"trainer": seeds(0.9, 0.9), "itra": seeds(0.9, 0.896)},
        "digits-100/vit": {"trainer": seeds(0.9, 0.9), "itra": seeds(0.9, 0.8)},  # nothing was asked of it
    }
    rows = [[cell.strip() for cell in line.split("|")[2:4]] for line in targets(results)[2:] if line]
    # gains of 0.4; 1.0 and 1.2; 0.0 and 1.0; 0.0 and -0.7; 0.0 and -0.4
    expected = [
        *(["1 of 1", "no"], ["+0.40", "no"], ["-16.0 %", "yes"], ["-22.5 %", "no"]),
        *(["+1.10", "yes"], ["+0.50", "no"], ["-0.35", "no"], ["-0.20", "yes"]),
    ]
    assert rows == expected


def test_the_cap_opens_where_a_run_says(monkeypatch):
    monkeypatch.setattr(guards, "LEARNED", guards.LEARNED)
    planned_runs = planned(["digits-100/cnn"], ["itra:fully_open_at=0.05"], [0], "test", [{"max_steps": 1}])
    execute(next(planned_runs), {})
    assert guards.LEARNED == 0.05


def test_couples_are_not_spread_where_a_run_says_so(monkeypatch):
    monkeypatch.setattr(ClassPairedSampler, "_order_of_couples", ClassPairedSampler._order_of_couples)
    labels = np.arange(400) % 10

    def fewest_of_a_class_in_a_fifth():
        return min(
            np.bincount(fifth, minlength=10).min()
            for fifth in labels[ClassPairedSampler(labels).order()].reshape(5, 80)
        )

    assert fewest_of_a_class_in_a_fifth() >= 4
    execute(next(planned(["digits-100/cnn"], ["itra:spread=false"], [0], "test", [{"max_steps": 1}])), {})
    assert fewest_of_a_class_in_a_fifth() < 4
    couples = labels[ClassPairedSampler(labels).order()].reshape(-1, 2)
    assert (couples[:, 0] == couples[:, 1]).all()


def test_readme_takes_the_headline_between_its_marks():
    text = "a\n<!-- evidence -->\nold\n<!-- /evidence -->\nb\n"
    assert readme_with(text, "new") == "a\n<!-- evidence -->\nnew\n<!-- /evidence -->\nb\n"
    with pytest.raises(ValueError, match="<!-- evidence -->"):
        readme_with("no marks", "new")


def points(axis):
    """The name and the gain of each row of a forest plot."""
    names = [label.get_text() for label in axis.get_yticklabels()]
    gains = {int(line.get_ydata()[0]): line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"}
    return [(name, gains[place]) for place, name in enumerate(names)]


def test_forest_plots_show_the_gains_of_the_tables():
    results = current(HERE / "results.jsonl")
    main = family(results, MAIN)
    shown = points(main_forest(results).axes[0])
    assert shown == [(task, gain.gain) for (task, _), (gain, _) in main.items()]
    others = family(results, [pair for pair in OTHERS if pair[1] == "trainer"]) | main
    panels = {axis.get_title(): points(axis) for axis in methods_forest(results).axes if axis.get_visible()}
    assert "digits-100/cnn" in panels
    for task, methods in results.items():
        expected = [(method, others[task, method][0].gain) for method in methods if (task, method) in others]
        assert panels.get(task, []) == (expected if len(expected) > 2 else [])


def test_page_and_readme_are_made_from_the_results():
    results = current(HERE / "results.jsonl")
    readme = (ROOT / "README.md").read_text()
    assert (ROOT / "docs" / "evidence.md").read_text() == page(results)
    assert readme == readme_with(readme, headline(results))
