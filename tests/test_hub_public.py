"""What others may read of a run."""

import html
import re

import pytest

from itra_hf import ITRAConfig
from itra_hf.hub.public import as_text, is_folder, is_local, public_arguments, public_name


def test_the_arguments_that_repeat_a_run_hold_the_schedules_own_and_the_order_of_the_rows():
    schedule = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}}
    told = public_arguments(ITRAConfig("out", train_sampling_strategy="group_by_length", **schedule))
    assert told["lr_scheduler_kwargs"] == {"min_lr": 1e-6}
    assert told["train_sampling_strategy"] == "group_by_length"


def test_a_path_is_no_public_name(tmp_path):
    folder = tmp_path / "pets"
    folder.mkdir()
    for name, told, local in (
        (str(folder), "pets", True),
        ("/nowhere/cats.csv", "cats", True),
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased", False),
        ("imdb", "imdb", False),
    ):
        assert (public_name(name), is_local(name)) == (told, local)
    for path in (
        "../jane/rows.csv",
        "~/rows.csv",
        r"C:\Users\jane\rows.csv",
        "file:///home/jane/rows.csv",
        "jane/rows.csv",
    ):
        assert (public_name(path), is_folder(path)) == ("rows", False)
    (tmp_path / "rows.parquet").mkdir()
    for path in (
        str(folder),
        str(tmp_path / "rows.parquet"),
        "../jane",
        "~/jane",
        r"C:\Users\jane",
        "file:///home/jane",
        "a/b/c",
        "./jane",
    ):
        assert is_folder(path)


@pytest.mark.parametrize(
    "words",
    [
        "a\n# pwned",
        "<img src=http://a.b/c.png>",
        "[x](http://a.b)",
        "http://a.b",
        "www.a.b",
        "a|b",
        "**a**",
        "`a`",
        "![a](b)",
    ],
)
def test_words_of_others_are_text_in_markdown(words):
    shown = as_text(words)
    assert html.unescape(shown) == " ".join(words.split())
    assert not set(re.sub(r"&#\d+;", "", shown)) & set("\\`*_[]<>#|~&!@\n")
    assert "://" not in shown
    assert "www." not in shown


def test_words_without_signs_stay_as_they_are():
    assert as_text("Iris versicolor (2.5 cm), no-name") == "Iris versicolor (2.5 cm), no-name"


def test_no_path_and_no_token_is_among_the_arguments():
    args = ITRAConfig(
        "/home/jane/out", learning_rate=1e-3, matching="joint", hub_token="hf_secret", resume_from_checkpoint="x"
    )
    assert public_arguments(args) == {"learning_rate": 0.001, "seed": 42, "matching": "joint"}
    args.resume_from_checkpoint = True  # as the command line has it
    assert "resume_from_checkpoint" not in public_arguments(args)
