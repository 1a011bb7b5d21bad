"""One class for a row, the one that the model gets; and no odd label stops a run that Trainer would train."""

import copy
import logging

import datasets
import pytest
import tiny
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from transformers import Trainer

from itra_hf import ITRATrainer
from itra_hf.features import HeadNotFoundError
from itra_hf.step.forms import _without_gaps

SHORT = {"max_steps": 4, "logging_steps": 1, "learning_rate": 0.01}


def run(tmp_path, model, rows, cls=ITRATrainer, collator=None, **changes):
    trainer = tiny.trainer(tmp_path, model, rows, cls, {"data_collator": collator}, **(SHORT | changes))
    trainer.train()
    return trainer


def end_alike(*trainers):
    weights = [tiny.weights(trainer.model) for trainer in trainers]
    assert all(torch.equal(weights[0], other) for other in weights[1:])
    assert all(tiny.logs_of(trainer, "matching_loss") for trainer in trainers)


class Target(tiny.Mlp):
    def forward(self, x, target=None):
        return super().forward(x, target)


class Column(tiny.Mlp):
    """Takes classes `[n, 1]`, too."""

    def forward(self, x, labels=None):
        return super().forward(x, labels.flatten())


class Several(tiny.Mlp):
    """Several labels a row."""

    def forward(self, x, labels=None):
        logits = self.head(self.body(x))
        return {"loss": binary_cross_entropy_with_logits(logits, labels.float()), "logits": logits}


class Hinge(tiny.Mlp):
    """Takes the classes 0 and 1, or -1 and 1."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 2)

    def forward(self, x, labels=None):
        logits = self.head(self.body(x))
        margin = torch.where(labels > 0, 1, -1) * (logits[:, 1] - logits[:, 0])
        return {"loss": (1 - margin).clamp(min=0).mean(), "logits": logits}


class AnyLoss(tiny.Mlp):
    """Has a loss whatever the labels are."""

    def forward(self, x, labels=None):
        logits = self.head(self.body(x))
        return {"loss": logits.square().mean(), "logits": logits}


def relabelled(label, name="labels"):
    return [{"x": row["x"], name: label(index)} for index, row in enumerate(tiny.vectors())]


def as_before(model):
    """The same weights in another class."""

    def made(cls):
        torch.manual_seed(0)
        other = cls()
        other.load_state_dict(model.state_dict())
        return other

    return made


@pytest.mark.parametrize("matching", ["auto", "joint"])
def test_label_names_decide_on_the_sampler_as_on_the_batch(tmp_path, matching):
    made = as_before(tiny.Mlp())
    ours = run(tmp_path, made(tiny.Mlp), tiny.vectors(), matching=matching)
    rows = relabelled(lambda index: index % 3, "target")
    theirs = run(tmp_path, made(Target), rows, matching=matching, label_names=["target"])
    end_alike(ours, theirs)


def test_a_column_of_one_integer_a_row_holds_classes(tmp_path):
    made = as_before(tiny.Mlp())
    end_alike(
        run(tmp_path, made(tiny.Mlp), tiny.vectors(), matching="class_conditional"),
        run(tmp_path, made(Column), relabelled(lambda index: [index % 3]), matching="class_conditional"),
        run(tmp_path, made(Column), relabelled(lambda index: [index % 3])),
    )


@pytest.mark.parametrize("matching", ["auto", "joint"])
def test_integers_of_several_labels_a_row_are_matched_as_decimals_are(tmp_path, matching):
    made = as_before(tiny.Mlp())
    options = {"matching": matching, "gradient_accumulation_steps": 2, "matching_scope": "optimizer_step"}
    whole = relabelled(lambda index: [index % 2, int(index % 3 == 0), 1])
    decimal = [row | {"labels": [float(label) for label in row["labels"]]} for row in whole]
    runs = [run(tmp_path, made(Several), rows, **options) for rows in (whole, decimal)]
    end_alike(*runs)
    assert runs[0].matching_form == "joint"


def test_minus_one_is_a_class(tmp_path):
    made = as_before(Hinge())
    options = {"matching_max_grad_ratio": None, "matching_warmup_ratio": 0.0}
    end_alike(*(run(tmp_path, made(Hinge), relabelled(label), **options) for label in (lambda i: i % 2, sign)))


def sign(index):
    return 2 * (index % 2) - 1


def takes(name):
    def collate(rows):
        return {
            "x": torch.stack([torch.as_tensor(row["x"]) for row in rows]),
            "labels": torch.tensor([row[name] for row in rows]),
        }

    return collate


@pytest.mark.parametrize("other", [lambda index: index // 16, lambda index: [1.0, 0.0]])
@pytest.mark.parametrize("kind", ["list", "datasets"])
def test_of_two_label_columns_the_one_that_reaches_the_model_pairs_the_rows(tmp_path, other, kind):
    made = as_before(tiny.Mlp())
    two = [row | {"labels": other(index), "label": index % 3} for index, row in enumerate(tiny.vectors())]
    if kind == "datasets":
        two = datasets.Dataset.from_list([row | {"x": row["x"].tolist()} for row in two])
    options = {"remove_unused_columns": False, "matching": "class_conditional"}
    one = run(tmp_path, made(tiny.Mlp), tiny.vectors(), matching="class_conditional")
    end_alike(one, run(tmp_path, made(tiny.Mlp), two, collator=takes("label"), **options))


@pytest.mark.parametrize("kind", ["tensors", "subset", "sum", "names"])
def test_data_sets_of_torch_are_paired_as_lists_are(tmp_path, kind):
    rows, made = tiny.vectors(), as_before(tiny.Mlp())
    x, y = torch.stack([row["x"] for row in rows]), torch.tensor([row["labels"] for row in rows])
    names = ["red", "green", "blue"]
    collators = {
        "tensors": lambda pairs: {
            "x": torch.stack([a for a, _ in pairs]),
            "labels": torch.stack([b for _, b in pairs]),
        },
        "names": lambda rows: {
            "x": torch.stack([row["x"] for row in rows]),
            "labels": torch.tensor([names.index(row["labels"]) for row in rows]),
        },
    }
    data = {
        "tensors": TensorDataset(x, y),
        "subset": Subset([*rows, *rows], range(48)),
        "sum": ConcatDataset([rows[:20], rows[20:]]),
        "names": [row | {"labels": names[row["labels"]]} for row in rows],
    }
    end_alike(
        run(tmp_path, made(tiny.Mlp), rows),
        run(tmp_path, made(tiny.Mlp), data[kind], collator=collators.get(kind), remove_unused_columns=False),
    )


def boxes(rows):
    return {"x": torch.stack([row["x"] for row in rows]), "labels": [{"boxes": row["labels"]} for row in rows]}


def nested(rows):
    return {"x": torch.stack([row["x"] for row in rows]), "labels": {"a": torch.tensor([r["labels"] for r in rows])}}


def without(rows):
    return {"x": torch.stack([row["x"] for row in rows])}


def pairs(rows):
    return torch.stack([row["x"] for row in rows]), torch.tensor([row["labels"] for row in rows])


class Unpacks(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        x, labels = inputs
        outputs = model(x)
        loss = cross_entropy(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss


class ITRAUnpacks(ITRATrainer, Unpacks):
    pass


@pytest.mark.parametrize("collator", [boxes, nested, without, pairs])
def test_odd_labels_train_as_under_trainer_with_one_warning_and_stop_a_form_that_was_asked_for(
    tmp_path, caplog, collator
):
    start, runs = AnyLoss(), []
    classes = (Unpacks, ITRAUnpacks) if collator is pairs else (Trainer, ITRATrainer)
    options = {"remove_unused_columns": False, "pairing": "random"}
    with caplog.at_level(logging.WARNING, "itra_hf"):
        for cls in classes:
            runs.append(run(tmp_path, copy.deepcopy(start), tiny.vectors(), cls, collator, **options))
    assert torch.equal(*(tiny.weights(trainer.model) for trainer in runs))
    told = [record.getMessage() for record in caplog.records]
    assert ["the batch holds no label for each row" in text for text in told] == [True]
    with pytest.raises(ValueError, match=r"needs labels.*matching='marginal'"):
        run(tmp_path, copy.deepcopy(start), tiny.vectors(), classes[1], collator, matching="joint", **options)


def changes_later(rows):
    batch = {"x": torch.stack([row["x"] for row in rows]), "labels": torch.tensor([row["labels"] for row in rows])}
    changes_later.batches += 1
    if changes_later.batches == 2:
        batch["labels"] = nn.functional.one_hot(batch["labels"], 3).float()
    if changes_later.batches == 3:
        del batch["labels"]
    return batch


def test_labels_of_another_kind_in_a_later_batch_are_passed_over_with_one_warning(tmp_path, caplog):
    changes_later.batches = 0
    with caplog.at_level(logging.WARNING, "itra_hf"):
        ours = run(tmp_path, AnyLoss(), tiny.vectors(), collator=changes_later)
    assert [log["step"] for log in ours.state.log_history if "matching_loss" in log] == [1, 4]
    told = [record.getMessage() for record in caplog.records if "such batches" in record.getMessage()]
    assert len(told) == 1
    changes_later.batches = 0
    with pytest.raises(HeadNotFoundError, match="began with labels that are classes"):
        run(tmp_path, AnyLoss(), tiny.vectors(), collator=changes_later, matching="class_conditional")


def two_rows_then_one(rows):
    two_rows_then_one.batches += 1
    return takes("labels")(rows[: 1 + two_rows_then_one.batches % 2])


def test_batches_of_one_row_are_trained_as_under_trainer(tmp_path):
    start, runs = tiny.Mlp(), []
    for cls in (Trainer, ITRATrainer):
        two_rows_then_one.batches = 1
        options = {"pairing": "random", "max_steps": 1}
        runs.append(run(tmp_path, copy.deepcopy(start), tiny.vectors(), cls, two_rows_then_one, **options))
    assert torch.equal(*(tiny.weights(trainer.model) for trainer in runs))


class Masked(tiny.Mlp):
    """Leaves out labels that are missing, as the losses of many tasks do."""

    def __init__(self, outputs=3):
        super().__init__()
        self.head = nn.Linear(6, outputs)

    def forward(self, x, labels=None):
        logits = self.head(self.body(x))
        known = labels.isfinite() & (labels != -100)
        error = (logits.view_as(labels) - labels)[known]
        return {"loss": error.square().mean(), "logits": logits}


@pytest.mark.parametrize(
    ("outputs", "label"),
    [
        (3, lambda i: [1.0, 0.0, float("nan") if i % 5 == 0 else 1.0]),
        (3, lambda i: [1, 0, -100 if i % 5 == 0 else 1]),
        (1, lambda i: float("nan") if i % 5 == 0 else i % 3 + 0.5),
        (1, lambda i: float("inf") if i % 5 == 0 else 1e5 + i % 3),
    ],
)
def test_labels_that_the_loss_leaves_out_ruin_nothing(tmp_path, outputs, label):
    ours = run(tmp_path, Masked(outputs), relabelled(label), matching_max_grad_ratio=None, matching_warmup_ratio=0.0)
    assert tiny.weights(ours.model).isfinite().all()
    assert all(0 < value < 3 for value in tiny.logs_of(ours, "matching_loss"))


def test_missing_numbers_count_as_the_mean_of_the_others():
    labels = torch.tensor([1.0, float("nan"), 4.0, float("inf")])
    assert _without_gaps(labels, "targets").tolist() == [1.0, 2.5, 4.0, 2.5]
    assert _without_gaps(torch.tensor([2, 3]), "targets").tolist() == [2, 3]
    assert _without_gaps(torch.tensor([[1, -100]]), "vectors").tolist() == [[1, 0]]


def test_a_name_that_the_collator_changes_to_labels_is_found(tmp_path):
    made = as_before(tiny.bert(0.0))
    rows = [{**row, "label": row["labels"]} for row in tiny.texts()]
    for row in rows:
        del row["labels"]
    ours = run(tmp_path, made(lambda: tiny.bert(0.0)), rows, label_names=["label"])
    end_alike(run(tmp_path, made(lambda: tiny.bert(0.0)), tiny.texts()), ours)


def grows(rows):
    grows.batches += 1
    return {"x": torch.stack([row["x"] for row in rows]), "labels": torch.rand(len(rows), 2 + grows.batches)}


@pytest.mark.parametrize("scope", ["micro_batch", "optimizer_step"])
def test_vectors_of_another_length_in_each_batch_stop_no_run(tmp_path, caplog, scope):
    grows.batches = 0
    options = {"gradient_accumulation_steps": 2, "matching_scope": scope}
    with caplog.at_level(logging.WARNING, "itra_hf"):
        ours = run(tmp_path, AnyLoss(), tiny.vectors(), collator=grows, **options)
    assert ours.state.global_step == 4
    assert ("several kinds (torch.float32 of shape (3,), torch.float32 of shape (4,)" in caplog.text) is (
        scope == "optimizer_step"
    )
    if scope == "optimizer_step":
        grows.batches = 0
        with pytest.raises(HeadNotFoundError, match="several kinds"):
            run(tmp_path, AnyLoss(), tiny.vectors(), collator=grows, matching="joint", **options)


def pops(rows):
    labels = torch.tensor([row.pop("label") for row in rows])
    return {"x": torch.stack([row["x"] for row in rows]), "labels": labels}


def test_seeing_which_column_the_model_gets_changes_no_row(tmp_path):
    left = []
    for cls in (Trainer, ITRATrainer):
        rows = [{"x": row["x"], "label": i % 3, "label_ids": i // 16} for i, row in enumerate(tiny.vectors())]
        ours = run(tmp_path, tiny.Mlp(), rows, cls, collator=pops, remove_unused_columns=False)
        left.append(sum("label" in row for row in rows))
    assert ours.row_order.sampler is not None
    assert left[0] == left[1] > 0


@pytest.mark.parametrize("label", [lambda i: float(i % 3), lambda i: [float(i % 3 == k) for k in range(3)], None])
@pytest.mark.parametrize("kind", ["list", "datasets"])
def test_a_form_that_was_asked_for_is_judged_by_the_labels_that_the_model_gets(tmp_path, label, kind):
    rows = [{"x": row["x"], "index": i} for i, row in enumerate(tiny.vectors())]
    if label is not None:
        rows = [row | {"label": label(row["index"])} for row in rows]
    if kind == "datasets":
        rows = datasets.Dataset.from_list([row | {"x": row["x"].tolist()} for row in rows])

    def collate(rows):
        x = torch.stack([torch.as_tensor(row["x"]) for row in rows])
        return {"x": x, "labels": torch.tensor([row["index"] % 3 for row in rows])}

    options = {"matching": "class_conditional", "remove_unused_columns": False}
    ours = run(tmp_path, tiny.Mlp(), rows, collator=collate, **options)
    assert tiny.logs_of(ours, "matching_loss")


def maps(rows):
    return {"x": torch.stack([row["x"] for row in rows]), "labels": torch.rand(len(rows), 2, 3)}


def test_maps_of_numbers_are_no_label_of_a_row(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "itra_hf"):
        ours = run(tmp_path, AnyLoss(), tiny.vectors(), collator=maps)
    assert ours.cannot_match
    assert len([text for text in caplog.messages if "holds no label for each row" in text]) == 1
    assert "hardly" not in caplog.text
