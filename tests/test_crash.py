"""Real processes die by SIGKILL; the run that goes on ends in the bits of one that never died."""

from pathlib import Path

import crashes
import pytest
import tiny
import torch
from transformers.trainer_callback import TrainerState

from itra_hf import checkpoints
from itra_hf.checkpoints import STATE, last_whole_checkpoint

MICRO_BATCH = {"gradient_accumulation_steps": 2}
OPTIMIZER_STEP = {"gradient_accumulation_steps": 2, "matching_scope": "optimizer_step"}
WORKERS = {"dataloader_num_workers": 2, "bert": True}
END_OF_EPOCH = {"save_strategy": "epoch"}

CRASHES = {
    "step, within an epoch": (1, MICRO_BATCH, ("on_step_end", 7)),
    "step, at an epoch's end": (1, MICRO_BATCH | END_OF_EPOCH, ("on_step_end", 6)),
    "accumulation": (1, MICRO_BATCH, ("on_substep_end", 9)),
    "accumulation of a step matched whole": (1, OPTIMIZER_STEP, ("on_substep_end", 9)),
    "step matched whole, at an epoch's end": (1, OPTIMIZER_STEP | END_OF_EPOCH, ("on_substep_end", 6)),
    "workers": (1, WORKERS, ("on_step_end", 9)),
    "weights without an optimizer": (1, MICRO_BATCH, "optimizer"),
    "half of the state": (1, OPTIMIZER_STEP, "end of state"),
    "two ranks, step": (2, MICRO_BATCH, ("on_step_end", 5)),
    "two ranks, at an epoch's end": (2, OPTIMIZER_STEP | END_OF_EPOCH, ("on_step_end", 7)),
    "two ranks, workers": (2, WORKERS, ("on_step_end", 9)),
    "two ranks, one saved": (2, MICRO_BATCH, "rng"),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    known = {}

    def weights(world_size, changes):
        run = (world_size, *sorted((name, value) for name, value in changes.items() if name != "save_strategy"))
        if run not in known:
            folder = tmp_path_factory.mktemp("uninterrupted")
            assert crashes.run(world_size, folder, changes | {"save_strategy": "no"})
            known[run] = read(folder, world_size)
        return known[run]

    return weights


def read(folder: Path, world_size: int) -> torch.Tensor:
    return torch.stack([torch.load(folder / f"weights-{rank}.pt") for rank in range(world_size)])


@pytest.mark.parametrize(("world_size", "changes", "death"), CRASHES.values(), ids=CRASHES)
def test_a_killed_run_goes_on_to_the_bits_of_one_that_lived(tmp_path, uninterrupted, world_size, changes, death):
    if world_size > 1:
        tiny.needs_transformers("5.18", "its Trainer loads the optimizer of CPU ranks to cpu:0, which torch refuses")
    assert not crashes.run(world_size, tmp_path, changes, death)
    assert crashes.run(world_size, tmp_path, changes, resume=True)
    assert torch.equal(read(tmp_path, world_size), uninterrupted(world_size, changes))


def test_a_run_killed_again_and_again_ends_in_the_same_bits(tmp_path, uninterrupted):
    lives = 1
    while not crashes.run(1, tmp_path, MICRO_BATCH, ("on_step_end", 4), resume=lives > 1 or None):
        lives += 1
    assert lives == 6
    assert torch.equal(read(tmp_path, 1), uninterrupted(1, MICRO_BATCH))


def test_a_checkpoint_written_half_is_passed_over_with_a_warning(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(checkpoints.logger, "warning", warnings.append)
    for step in (2, 10, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
        TrainerState(global_step=step).save_to_json(str(tmp_path / f"checkpoint-{step}" / STATE))
    (tmp_path / "checkpoint-best").mkdir()
    assert last_whole_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")
    state = (tmp_path / "checkpoint-10" / STATE).read_text()
    (tmp_path / "checkpoint-10" / STATE).write_text(state[:-3])
    (tmp_path / "checkpoint-9" / STATE).unlink()
    assert not warnings
    assert last_whole_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-2")
    assert [Path(warning.split()[0]).name for warning in warnings] == ["checkpoint-10", "checkpoint-9"]


def test_nothing_to_resume_from_is_an_error_that_names_the_way_out(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    with pytest.raises(
        ValueError,
        match=r"^No valid checkpoint found in output directory \(.*Start again without resume_from_checkpoint",
    ):
        tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors()).train(resume_from_checkpoint=True)


def test_a_checkpoint_written_anew_is_half_until_it_ends(tmp_path):
    run = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), crashes.KilledWhileSaving, save_strategy="epoch")
    run.train()
    assert last_whole_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-4")
    run._save_optimizer_and_scheduler = lambda folder: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run._save_checkpoint(run.model, None)
    assert last_whole_checkpoint(str(tmp_path)) is None
