"""What is read of a user's data, and what is refused."""

import folders
import numpy as np
import pytest

from itra_hf.command.data import TaskArguments, read_rows


def test_a_class_keeps_its_share_of_fewer_rows_and_of_those_held_out(tmp_path):
    data = TaskArguments("model", train_file=folders.pets(tmp_path), max_train_samples=15)
    rows = read_rows(data, seed=0)
    assert np.bincount(rows.train["labels"]).tolist() == [5, 5, 5]
    assert sorted(np.bincount(rows.test["labels"])) == [4, 4, 4]
    assert read_rows(data, seed=0).train["text"][:] == rows.train["text"][:]
    assert read_rows(data, seed=1).train["text"][:] != rows.train["text"][:]


def test_a_fifth_is_held_out_where_there_is_no_test_set(tmp_path):
    rows = read_rows(TaskArguments("model", dataset_name=folders.stripes(tmp_path)), seed=0)
    assert (rows.kind, rows.columns, rows.names) == ("image", ["image"], ["across", "along", "none"])
    assert (len(rows.train), len(rows.test)) == (24, 6)


def test_a_test_set_is_taken_and_a_training_set_must_be_there(tmp_path):
    folder = folders.stripes(tmp_path, 9, "test")
    with pytest.raises(ValueError, match="no split 'train'; the data have test"):
        read_rows(TaskArguments("model", dataset_name=folder), seed=0)
    folders.stripes(tmp_path, 12, "train")
    rows = read_rows(TaskArguments("model", dataset_name=folder), seed=0)
    assert (len(rows.train), len(rows.test)) == (12, 9)


@pytest.mark.parametrize(
    ("labels", "names"), [(["True", "False"], ["false", "true"]), (["10", "2", "1"], ["1", "2", "10"])]
)
def test_truth_values_and_numbers_are_classes_in_their_order(tmp_path, labels, names):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "".join(f"row {label},{label}\n" for label in labels * 10))
    rows = read_rows(TaskArguments("model", train_file=str(file)), seed=0)
    assert rows.names == names
    assert all(names[row["labels"]] == row["text"].removeprefix("row ").lower() for row in rows.train)


@pytest.mark.parametrize("labels", [["cat", "dog"], ["1", "2"], ["True", "False"], ["0.5", "1.5"]])
def test_rows_without_a_label_are_counted(tmp_path, labels):
    for name, more in (("whole", []), ("broken", ["", "", ""])):
        lines = [f"row,{label}\n" for label in labels * 10 + more]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(lines))
    whole, broken = str(tmp_path / "whole.csv"), str(tmp_path / "broken.csv")
    files = {"train_file": broken}, {"train_file": whole, "validation_file": broken}
    for given, split in zip(files, ("train", "validation"), strict=True):
        with pytest.raises(ValueError, match=f"3 of the 23 {split} rows have no label; take them out, or give"):
            read_rows(TaskArguments("model", **given), seed=0)


def test_a_split_that_is_not_used_may_lack_labels(tmp_path):
    for split, label in (("train", "cat"), ("validation", "cat"), ("test", "")):
        (tmp_path / f"{split}.csv").write_text("text,label\n" + f"row,{label}\n" * 4)
    rows = read_rows(TaskArguments("model", dataset_name=str(tmp_path)), seed=0)
    assert (len(rows.train), len(rows.test)) == (4, 4)


def test_what_does_not_fit_is_named_with_the_way_out(tmp_path):
    model, file = "model", folders.pets(tmp_path)
    for given, message in (
        ({}, "no model; give --model_name_or_path"),
        ({"model_name_or_path": model}, "dataset_name=None and train_file=None; give one"),
        ({"model_name_or_path": model, "train_file": file, "max_length": 0}, "max_length=0 must be positive"),
        (
            {"model_name_or_path": model, "dataset_name": "b", "validation_file": file},
            "validation_file='.*' goes with train_file, not with dataset_name='b'; leave it out, or give train_file",
        ),
        (
            {"model_name_or_path": model, "train_file": "b", "dataset_config_name": "c"},
            "dataset_config_name='c' goes with dataset_name, not with train_file='b'; leave it out, or give",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            TaskArguments(**given)
    (tmp_path / "two.csv").write_text("one,two,label\na,b,0\n")
    (tmp_path / "lists.jsonl").write_text('{"text": "a", "label": [0, 1]}\n')
    (tmp_path / "pets.txt").touch()
    for file, options, message in (
        ("pets.csv", {"label_column": "kind"}, "pets.csv has no column 'kind'; it has text, label"),
        ("two.csv", {}, "which column holds the inputs.* one, two, label; give --input_column"),
        ("lists.jsonl", {}, "one class or one decimal number a row"),
        ("pets.txt", {}, "cannot read .*pets.txt; give a file that ends in .csv, .tsv, .json, .jsonl"),
    ):
        with pytest.raises(ValueError, match=message):
            read_rows(TaskArguments(model, train_file=str(tmp_path / file), **options), seed=0)


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_label_that_is_no_finite_number_is_named_with_file_row_and_column(tmp_path, bad, split):
    good = [f'{{"text": "a{row}", "score": {row}.5}}' for row in range(20)]
    files = {"train": good, "validation": good[:4]}
    files[split] = [*files[split][:2], files[split][2].replace("2.5", bad), *files[split][3:]]
    paths = {}
    for name, lines in files.items():
        paths[f"{name}_file"] = str(tmp_path / f"{name}.jsonl")
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf"{split}\.jsonl, row 3, column 'score': the label is -?(nan|inf)"):
        read_rows(TaskArguments("model", label_column="score", **paths), seed=0)


def test_an_infinite_label_in_a_table_is_named(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "".join(f"a{row},{'inf' if row == 4 else row + 0.5}\n" for row in range(9)))
    with pytest.raises(ValueError, match=r"train\.csv, row 5, column 'label': the label is inf"):
        read_rows(TaskArguments("model", train_file=str(path)), seed=0)


@pytest.mark.parametrize("cell", ["", "NA"])
def test_an_empty_cell_is_named_with_file_row_and_column(tmp_path, cell):
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "".join(f"{cell if row == 4 else f'a{row}'},{row % 2}\n" for row in range(20)))
    with pytest.raises(ValueError, match=r"train\.csv, row 5, column 'text': the cell is empty"):
        read_rows(TaskArguments("model", train_file=str(path)), seed=0)
