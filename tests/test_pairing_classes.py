"""The class of every row is the one that the model gets, read without loading the rows."""

import datasets
import numpy as np
import pandas
import pytest
import tiny
import torch
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from itra_hf.pairing import class_column, first_labels, label_names
from itra_hf.pairing.classes import _arrow_column

NAMES = label_names(None)


def never(rows):
    raise AssertionError("rows were collated")


def classes(dataset, labels_of=never, names=NAMES, model=None):
    found = class_column(dataset, model or tiny.bert(), names, labels_of)
    return None if found is None else found.tolist()


def both(values, name="labels"):
    """The same labels as a list of examples and as a data set."""
    rows = [{"text": "a", name: value} for value in values]
    return rows, datasets.Dataset.from_list(rows)


@pytest.mark.parametrize("name", ["label", "labels", "label_ids"])
def test_the_label_column_is_found_under_every_usual_name(name):
    for dataset in both([1, 0], name):
        assert classes(dataset) == [1, 0]


def test_the_column_is_the_one_that_label_names_say():
    assert label_names(["labels", "weights"])[0] == "labels"
    for dataset in both([1, 0], "target"):
        assert classes(dataset) is None
        assert classes(dataset, names=label_names(["target"])) == [1, 0]


@pytest.mark.parametrize(
    ("values", "same"),
    [
        ([-1, 1, -1, 1], [0, 1, 0, 1]),
        (["no", "yes", "no", "yes"], [0, 1, 0, 1]),
        ([2.0, 5.0, 2.0, 2.0], [0, 1, 0, 0]),
        ([True, False, True, None], [0, 1, 0, 2]),
        (["a", None, "a", None], [0, 1, 0, 1]),
        ([None, 3, 3, None], [0, 1, 1, 0]),
        ([4, None, 5, None], [0, 1, 2, 1]),
        ([[3], [1], [3], [1]], [0, 1, 0, 1]),
        ([10**12, 5, 10**12, 5], [0, 1, 0, 1]),
    ],
)
def test_rows_of_one_label_are_of_one_class_whatever_the_label_is(values, same):
    for dataset in both(values):
        assert pandas.factorize(np.array(classes(dataset)))[0].tolist() == same


@pytest.mark.parametrize("values", [[0.5, 1.5], [[1, 0, 1], [0, 1, 1]], [[0, 1], [1]], [0.25, None], [[], [1]]])
def test_rows_without_a_class_have_no_class_column(values):
    for dataset in both(values):
        assert classes(dataset) is None


def test_what_the_model_or_the_rows_say_is_no_class():
    assert classes([{"x": 1}]) is None
    assert classes([]) is None
    assert classes([{"labels": {"boxes": 1}}, {"labels": {"boxes": 2}}]) is None
    assert classes([{"labels": 1}, {"labels": 2}], model=tiny.bert(num_labels=1)) is None
    assert classes([{"labels": 1}, {"x": 1}, {"labels": 1}]) == [0, 1, 0]


def test_reading_labels_runs_no_transform():
    def explode(batch):
        raise AssertionError("the transform ran")

    dataset = datasets.Dataset.from_dict({"labels": [1, 0], "image": [0, 0]}).with_transform(explode)
    assert classes(dataset) == [1, 0]
    assert first_labels(dataset, NAMES) == [1]
    assert classes(dataset.select([1])) == [0]


def test_pictures_and_labels_by_the_token_are_never_read_whole(monkeypatch):
    pictures = datasets.Dataset.from_dict({"label": [Image.new("L", (4, 4))] * 3}).cast_column(
        "label", datasets.Image()
    )
    undecoded = pictures.cast_column("label", datasets.Image(decode=False))
    tokens = datasets.Dataset.from_dict({"labels": [[0, 1, 2]] * 3})
    numbers = datasets.Dataset.from_dict({"labels": [0, 1, 2]})
    read, data = [], datasets.Dataset.data.fget
    monkeypatch.setattr(datasets.Dataset, "data", property(lambda dataset: read.append(dataset) or data(dataset)))
    for dataset in (pictures, undecoded, tokens):
        assert classes(dataset) is None
    assert read == []
    assert classes(numbers) == [0, 1, 2]
    assert read == [numbers], "whole columns are read in another way"


@pytest.mark.parametrize("label", [int, str, float, bool, lambda row: [row], lambda row: row or None])
def test_labels_of_shuffled_and_split_rows_are_read_at_once(monkeypatch, label):
    """Also where rows that are left out have several labels. Row by row a million would take seconds."""
    values = [label(row % 3) for row in range(30)]
    whole = datasets.Dataset.from_dict({"labels": [*values, [1, 2]] if isinstance(values[0], list) else values})
    whole = datasets.concatenate_datasets([whole.select(range(10)), whole.select(range(10, len(whole)))])
    shuffled = whole.select(range(30)).shuffle(seed=0)
    kept = whole.filter(lambda row: not isinstance(row["labels"], list) or len(row["labels"]) == 1)
    parts = {part: part["labels"][:] for part in (shuffled, kept, *shuffled.train_test_split(9).values())}
    monkeypatch.delattr(datasets.table.IndexedTableMixin, "fast_gather")
    for dataset, rows in parts.items():
        found, same = (pandas.factorize(np.array(each))[0] for each in (classes(dataset), [str(row) for row in rows]))
        assert found.tolist() == same.tolist()


class Folder(Dataset):
    """As torchvision's data sets, and as many scripts write them."""

    def __init__(self, labels, name="targets"):
        self.rows = len(labels)
        setattr(self, name, labels)

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        raise AssertionError("a row was loaded")


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, pandas.Series, tuple])
@pytest.mark.parametrize("name", ["targets", "labels"])
def test_data_sets_of_torch_tell_their_labels(kind, name):
    dataset = Folder(kind([2, 0, 1, 0]), name)
    assert classes(dataset) == [2, 0, 1, 0]
    assert classes(Subset(dataset, [3, 0])) == [0, 2]
    assert classes(Subset(Subset(dataset, torch.tensor([3, 0, 1])), range(2))) == [0, 2]
    assert classes(ConcatDataset([Subset(dataset, [0]), dataset])) == [2, 2, 0, 1, 0]


def test_names_of_the_classes_are_not_taken_for_the_labels_of_rows():
    dataset = Folder([0, 1, 0])
    dataset.labels = ["cat", "dog"]
    assert classes(dataset) == [0, 1, 0]
    assert classes(Folder("abc", "names")) is None


def test_data_sets_of_examples_are_found_in_subsets_and_sums():
    first, second = both(["b", "a", "b"])
    assert classes(Subset(first, [2, 0])) == [0, 0]
    assert classes(ConcatDataset([first, second])) == [0, 1, 0, 0, 1, 0]
    assert classes(ConcatDataset([first, [{"x": 1}]])) is None


def test_the_one_column_of_integers_in_a_tensor_data_set_is_its_label():
    x, y = torch.rand(4, 3), torch.tensor([1, 0, 1, 0])
    assert classes(TensorDataset(x, y)) == [1, 0, 1, 0]
    assert classes(TensorDataset(torch.arange(8).view(4, 2), y[:, None])) == [1, 0, 1, 0]
    assert classes(TensorDataset(x)) is None
    two = TensorDataset(x, torch.arange(4), y)
    assert classes(two, lambda rows: y[rows]) == [1, 0, 1, 0]


TWO = [{"label": row % 3, "labels": row // 3} for row in range(12)]


@pytest.mark.parametrize("name", ["label", "labels"])
def test_of_two_columns_the_one_counts_that_the_model_gets(name):
    for dataset in (TWO, datasets.Dataset.from_list(TWO)):
        taken = []

        def collated(rows, taken=taken):
            taken.append(rows)
            return torch.tensor([10 + TWO[row][name] for row in rows])  # as a collator may number them

        assert classes(dataset, collated) == [row[name] for row in TWO]
        assert len(taken) == 1


def test_two_columns_that_are_alike_need_no_look_at_batches():
    rows = [{"label": row % 3, "labels": 2 - row % 3} for row in range(12)]
    assert classes(rows) == [2 - row % 3 for row in range(12)]


def test_of_two_columns_none_counts_where_the_model_gets_something_else():
    assert classes(TWO, lambda rows: torch.rand(len(rows), 3)) is None
    assert classes(TWO, lambda rows: torch.arange(len(rows))) is None
    assert classes(TWO, lambda rows: {"boxes": rows}) is None
    mixed = [row | {"labels": [1.0, 0.0]} for row in TWO]
    assert classes(mixed, lambda rows: torch.tensor([[1.0, 0.0]] * len(rows))) is None
    assert classes(mixed, lambda rows: torch.tensor([TWO[row]["label"] for row in rows])) == [r["label"] for r in TWO]


def test_of_two_columns_the_likeliest_counts_where_rows_do_not_collate():
    assert classes(TWO, lambda rows: None) == [row["labels"] for row in TWO]


def test_a_model_that_knows_no_config_reads_classes():
    assert classes([{"labels": 1}, {"labels": 0}], model=nn.Linear(2, 2)) == [1, 0]


class Raises(Folder):
    @property
    def labels(self):
        raise NotImplementedError


RAGGED = [[[1], [1, 2]]] * 4


@pytest.mark.parametrize(
    "dataset",
    [
        Folder(torch.tensor([0.5] * 4, dtype=torch.bfloat16)),
        Folder(torch.eye(4).to_sparse()),
        Folder(torch.empty(4, device="meta")),
        Folder(RAGGED),
        Folder([1, 2], "targets"),
        [{"labels": torch.tensor(0.5, dtype=torch.bfloat16)}] * 4,
        [{"labels": row} for row in RAGGED],
        [{"labels": 1}, "no mapping"],
        [{"labels": {1}}] * 4,
        datasets.Dataset.from_dict({"labels": RAGGED}),
        datasets.Dataset.from_dict({"labels": [[1], [1, 2], [3], [4]]}),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_what_cannot_be_read_is_no_class_and_no_error(dataset):
    if isinstance(dataset, Folder):
        dataset.rows = 4
    assert classes(dataset) is None


def test_values_that_torch_cannot_take_are_classes_all_the_same():
    assert classes(Folder(np.arange(4).astype(">i8") // 2)) == [0, 0, 1, 1]
    large = classes([{"labels": 2**63 + row % 2} for row in range(4)])
    assert large[0] == large[2] != large[1] == large[3]
    gradient = [{"labels": torch.tensor(float(row % 2), requires_grad=True)} for row in range(4)]
    assert classes(gradient) in ([0, 1, 0, 1], None)
    assert classes([{"labels": float("inf")}, {"labels": 1.0}]) == [0, 1]
    dataset = Raises([1, 0])
    assert classes(dataset) == [1, 0]


def test_of_lists_no_longer_ones_are_read():
    for values, read in (([[1], [0]], True), ([[1], [0, 1]], False)):
        dataset = datasets.Dataset.from_dict({"labels": values})
        assert (_arrow_column(dataset, "labels") is not None) is read
