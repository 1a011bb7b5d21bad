"""What others may read of a run."""

from itra_hf import ITRAConfig
from itra_hf.public import is_local, public_arguments, public_name


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
