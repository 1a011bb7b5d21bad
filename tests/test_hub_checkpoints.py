"""Real processes die by SIGKILL; the run that goes on ends in the bits of one that never died."""

import os
import shutil
from pathlib import Path

import crashes
import pytest
import tiny
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import Trainer
from transformers.trainer_callback import TrainerState

from itra_hf import ITRATrainer
from itra_hf.files import flush
from itra_hf.hub import checkpoints, saving
from itra_hf.hub.checkpoints import STATE, fault_of, last_whole_checkpoint

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


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's folder with checkpoints of steps 2 and 4, and its final weights."""
    folder = tmp_path_factory.mktemp("saved")
    run = resumable(folder)
    run.train()
    return folder, tiny.weights(run.model)


RESUMABLE = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.02}


def resumable(folder, cls=ITRATrainer, **options):
    return tiny.trainer(folder, tiny.Mlp(dropout=0.3), tiny.vectors(), cls, **RESUMABLE | options)


@pytest.mark.parametrize("damage", [cut, empty, Path.unlink])
@pytest.mark.parametrize("name", [*FILES, STATE])
def test_a_checkpoint_with_a_broken_file_is_passed_over_or_named(tmp_path, monkeypatch, saved, name, damage):
    warnings = []
    monkeypatch.setattr(checkpoints.logger, "warning", warnings.append)
    folder = tmp_path / "run"
    shutil.copytree(saved[0], folder)
    damage(folder / "checkpoint-4" / name)
    with pytest.raises(ValueError, match=f"Cannot resume from .*checkpoint-4: {name} .*Name another checkpoint"):
        resumable(folder).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    run = resumable(folder)
    run.train(resume_from_checkpoint=True)
    assert name in warnings[0]
    assert torch.equal(tiny.weights(run.model), saved[1])
    assert last_whole_checkpoint(str(folder)) == str(folder / "checkpoint-4")  # written anew


@pytest.mark.parametrize("damage", [cut, empty])
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_in_a_checkpoint_of_trainer_is_found(tmp_path, name, damage):
    resumable(tmp_path, Trainer).train()
    damage(tmp_path / "checkpoint-4" / name)
    assert last_whole_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-2")


def test_a_checkpoint_of_trainer_is_resumed_and_one_of_ours_by_trainer(tmp_path):
    weights = []
    for first, second in ((Trainer, ITRATrainer), (ITRATrainer, Trainer)):
        folder = tmp_path / first.__name__
        resumable(folder, first, max_steps=2).train()
        run = resumable(folder, second, matching="none", restore_callback_states_from_checkpoint=True)
        run.train(resume_from_checkpoint=True)
        weights.append(tiny.weights(run.model))
    assert weights[0].isfinite().all()


def test_a_rank_waits_for_the_files_of_the_others_before_it_flushes_them(tmp_path):
    assert crashes.run(2, tmp_path, {"save_steps": 12}, "slow rank")
    assert fault_of(tmp_path / "checkpoint-12") is None


def test_a_random_state_of_a_rank_that_is_missing_is_named(tmp_path):
    assert crashes.run(2, tmp_path, {"save_steps": 12})
    checkpoint = tmp_path / "checkpoint-12"
    assert fault_of(checkpoint) is None
    (checkpoint / "rng_state_1.pth").unlink()
    assert fault_of(checkpoint) == "rng_state_1.pth is missing"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "other/adapter_model.safetensors"])
def test_an_adapter_that_is_missing_is_named(tmp_path, name):
    model = get_peft_model(tiny.bert(), LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query"]))
    model.add_adapter("other", LoraConfig(task_type=TaskType.SEQ_CLS, r=3, target_modules=["value"]))
    tiny.trainer(tmp_path, model, tiny.texts(), max_steps=1, save_strategy="steps", save_steps=1).train()
    assert fault_of(tmp_path / "checkpoint-1") is None
    cut(tmp_path / "checkpoint-1" / name)
    assert fault_of(tmp_path / "checkpoint-1").startswith(f"{name} has ")
    (tmp_path / "checkpoint-1" / name).unlink()
    assert fault_of(tmp_path / "checkpoint-1") == f"{name} is missing"


def test_what_people_and_callbacks_change_in_a_checkpoint_is_theirs(tmp_path, saved):
    folder = shutil.copytree(saved[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    for name, content in (("README.md", "mine"), ("index.json", "{}"), ("done.pt", ""), ("notes.bin", "x")):
        (folder / name).write_text(content)
    assert fault_of(folder) is None


def test_leftovers_of_a_killed_run_do_not_get_into_a_checkpoint(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    for name in ("rng_state_1.pth", "optimizer.pt"):
        (tmp_path / "checkpoint-4" / name).write_text("cut off")
    resumable(tmp_path, save_only_model=True).train()
    assert not (tmp_path / "checkpoint-4" / "optimizer.pt").exists()
    assert fault_of(tmp_path / "checkpoint-4") is None


@pytest.mark.parametrize("damage", [cut, empty, Path.unlink])
def test_a_broken_best_checkpoint_is_named_before_training_goes_on(tmp_path, damage):
    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 1e-9}
    options |= {"metric_for_best_model": "loss", "greater_is_better": True}  # the first is the best
    run = resumable(tmp_path, **options)
    run.train()
    best = Path(run.state.best_model_checkpoint)
    damage(best / "model.safetensors")
    newest = next(path for path in tmp_path.glob("checkpoint-*") if path != best)
    again = resumable(tmp_path, **options | {"max_steps": 6})
    with pytest.raises(ValueError, match=f"{best.name} is the best checkpoint so far.*model.safetensors"):
        again.train(resume_from_checkpoint=str(newest))


def test_a_folder_of_a_users_own_is_not_flushed(tmp_path, monkeypatch):
    run = resumable(tmp_path / "out")
    run.train()
    monkeypatch.setattr(os, "fsync", lambda number: pytest.fail("flushed"))
    run.save_model(str(tmp_path / "mine"))


@pytest.mark.parametrize("options", [{"save_only_model": True}, {"save_total_limit": 1}, {"save_on_each_node": True}])
def test_checkpoints_of_all_kinds_are_whole(tmp_path, options):
    resumable(tmp_path, **options).train()
    assert last_whole_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-4")
    cut(tmp_path / "checkpoint-4" / "model.safetensors")
    assert last_whole_checkpoint(str(tmp_path)) != str(tmp_path / "checkpoint-4")


@pytest.mark.parametrize("options", [{}, {"save_only_model": True}])
def test_files_are_on_the_disk_before_the_state_says_so(tmp_path, monkeypatch, options):
    flushed, real = set(), os.fsync

    def fsync(number):
        flushed.add(Path(f"/proc/self/fd/{number}").readlink().name.removesuffix(".part"))
        real(number)

    def save_to_json(state, path):
        there = {file.name for file in Path(path).parent.iterdir()}
        assert "model.safetensors" in there
        assert there - flushed <= {STATE}
        flushed.clear()
        written(state, path)

    written = TrainerState.save_to_json
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(TrainerState, "save_to_json", save_to_json)
    resumable(tmp_path, **options).train()
    assert len(list(tmp_path.glob(f"checkpoint-*/{STATE}"))) == 2


def test_a_users_read_only_file_beside_the_model_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "notes.txt")
    monkeypatch.setattr(os, "fsync", lambda number: opened.add(Path(f"/proc/self/fd/{number}").readlink().name))
    opened = set()
    flush(tmp_path)
    (tmp_path / "weights.pt").write_text("ours")
    flush(tmp_path)
    assert opened == {"weights.pt"}


def test_ranks_that_find_different_checkpoints_are_told_so(tmp_path, monkeypatch, saved):
    monkeypatch.setattr(saving, "gather_object", lambda found: [*found, "elsewhere/checkpoint-2"])
    with pytest.raises(ValueError, match="ranks find different checkpoints whole: checkpoint-2, checkpoint-4; give"):
        resumable(saved[0]).train(resume_from_checkpoint=True)


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
