"""What crosses ranks: two real processes (gloo) against one with the same global batch."""

import json
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import accelerate
import pytest
import tiny
import torch
from packaging.version import Version

from itra_hf.diagnostics import compactness
from itra_hf.distributed import gather_rows, sum_over_ranks

SCENARIOS = {
    "marginal": {"matching": "marginal"},
    "class_conditional": {"matching": "class_conditional"},
    "joint": {"matching": "joint"},
    "custom": {"custom": True},
    "random_pairs": {"pairing": "random", "train_sampling_strategy": "sequential"},
    "class_on_one_rank_only": {
        "one_class_per_rank": True,
        "train_sampling_strategy": "sequential",
        "matching": "class_conditional",
    },
    "no_guards": {"matching_warmup_ratio": 0.0, "matching_max_grad_ratio": None, "matching_weight": 0.5},
    "counting": {"model": "counting"},
    "counting_not_averaged": {"model": "counting", "average_tokens_across_devices": False},
    "optimizer_step": {"rows_per_step": 8, "gradient_accumulation_steps": 2, "matching_scope": "optimizer_step"},
    "accumulation": {"rows_per_step": 8, "gradient_accumulation_steps": 2},
}
LOCAL = {"local": {"gather_features": False}}
WHOLE = {
    "micro_batch": {"model": "bert", "max_steps": 5, "rows_per_step": 8, "gradient_accumulation_steps": 2},
    "step": {
        "model": "bert",
        "max_steps": 5,
        "rows_per_step": 8,
        "gradient_accumulation_steps": 2,
        "matching_scope": "optimizer_step",
    },
}
FSDP2 = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": ["BertLayer"]}
SHARDED = {f"sharded_{name}": changes | {"fsdp": True, "fsdp_config": FSDP2} for name, changes in WHOLE.items()}
SHARDED["sharded_resumed"] = SHARDED["sharded_step"] | {"dropout": 0.3, "resume_at": 2, "optim": "adamw_torch"}
MEASURED = {"measured": {"measures": ["compactness", "gradient_scatter", "over_adaptation"], "optim": "adamw_torch"}}
UNMEASURED = {"unmeasured": {"optim": "adamw_torch"}}
ZERO2 = {
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto"),
}
SHARDED["sharded_measured"] = SHARDED["sharded_micro_batch"] | {"measures": ["compactness"]}
ODD = {"odd": {"rows": 45, "max_steps": 9}}


RESUMED = {"resumed": {"resume_at": 5, "max_steps": 10, "dropout": 0.3}}


def free_port() -> str:
    """A port that nobody listens on; older releases of accelerate cannot choose one, and hang on port 0."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def launch(folder: Path, world_size: int, scenarios: dict) -> None:
    here = Path(__file__).parent
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "OMP_NUM_THREADS": "1"}
    script = [str(here / "ranks.py"), str(folder), str(world_size), json.dumps(scenarios)]
    command = [sys.executable, *(launcher if world_size > 1 else []), *script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    launch(folder, 1, SCENARIOS | ODD | MEASURED)
    launch(folder, 2, SCENARIOS | ODD | LOCAL | RESUMED | WHOLE | SHARDED | MEASURED | UNMEASURED)
    return lambda name, world_size, rank=0: torch.load(folder / f"{name}-{world_size}-{rank}.pt", weights_only=False)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "counting_not_averaged"])
def test_two_ranks_equal_one_process_with_the_same_global_batch(results, name):
    one, two = results(name, 1), results(name, 2)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(two["log"][:-1], one["log"][:-1], strict=True):
        for key in ("task_loss", "matching_loss", "matching_weight", "loss"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize("name", [*SCENARIOS, *LOCAL, *ODD])
def test_the_ranks_agree(results, name):
    assert torch.equal(results(name, 2, 0)["weights"], results(name, 2, 1)["weights"])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_resumed_within_an_epoch_ends_in_the_same_bits(results, rank):
    result = results("resumed", 2, rank)
    assert torch.equal(result["weights"], result["uninterrupted"])


@pytest.mark.parametrize("name", WHOLE)
def test_fsdp2_has_the_losses_of_ddp(results, name):
    sharded, whole = results(f"sharded_{name}", 2), results(name, 2)
    assert sharded["sharded"]
    assert not whole["sharded"]
    assert 0 < whole["log"][-2]["matching_weight"] < 2  # the cap is at work
    for ours, theirs in zip(sharded["log"][:-1], whole["log"][:-1], strict=True):
        for key in ("task_loss", "matching_loss", "matching_weight", "loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key
    torch.testing.assert_close(sharded["weights"], whole["weights"], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_deepspeed_zero2_has_the_losses_of_ddp(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    launch(tmp_path, 2, WHOLE)
    launch(tmp_path, 2, {f"zero2_{name}": changes | {"deepspeed": ZERO2} for name, changes in WHOLE.items()})
    for name in WHOLE:
        zero2, ddp = (torch.load(tmp_path / f"{run}-2-0.pt", weights_only=False) for run in (f"zero2_{name}", name))
        assert zero2["engine"] == "DeepSpeedEngine"
        for ours, theirs in zip(zero2["log"][:-1], ddp["log"][:-1], strict=True):
            for key in ("task_loss", "matching_loss", "matching_weight", "loss"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key
        torch.testing.assert_close(zero2["weights"], ddp["weights"], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    Version(accelerate.__version__) < Version("1.13"), reason="this accelerate does not load FSDP2's state of Adam"
)
def test_a_sharded_run_resumed_ends_in_the_same_bits(results):
    result = results("sharded_resumed", 2)
    assert torch.equal(result["weights"], result["uninterrupted"])


def test_without_gathering_each_rank_matches_its_own_rows(results):
    gathered, local = results("class_conditional", 2), results("local", 2)
    assert local["log"][0]["matching_loss"] != pytest.approx(gathered["log"][0]["matching_loss"], rel=1e-3)


def test_unequal_row_counts_are_gathered_with_the_gradient_times_the_ranks(results):
    first, second = results("gather", 2, 0), results("gather", 2, 1)
    expected = torch.cat([torch.arange(6.0).view(3, 2), 10 + torch.arange(2.0).view(1, 2)])
    assert torch.equal(first["rows"], expected)
    assert torch.equal(second["rows"], expected)
    assert torch.equal(first["grad"], 2 * expected[:3])
    assert torch.equal(second["grad"], 2 * expected[3:])


def test_diagnostics_measure_on_two_ranks_what_they_do_on_one(results):
    def measured(result):
        return [entry for entry in result["log"] if "gradient_scatter" in entry]

    whole, first, second = (measured(results("measured", *which)) for which in ((1,), (2, 0), (2, 1)))
    assert [entry["step"] for entry in first] == [0, 2, 4, 6]
    for one, two, other in zip(whole, first, second, strict=True):
        names = set(one) - {"diagnostics_share"}
        assert {name: two[name] for name in names} == {name: other[name] for name in names}
        of_train = {"gradient_variance", "gradient_norm", "gradient_scatter"}  # in batches half as large
        of_train |= {"fall_on_batch", "fall_on_fresh", "over_adaptation"}
        names -= of_train
        assert {name: two[name] for name in names} == pytest.approx({name: one[name] for name in names}, rel=1e-4)


def test_diagnostics_on_two_ranks_change_no_bit_of_the_training(results):
    for rank in (0, 1):
        measured, unmeasured = results("measured", 2, rank), results("unmeasured", 2, rank)
        assert torch.equal(measured["weights"], unmeasured["weights"])
    sharded, unmeasured = results("sharded_measured", 2), results("sharded_micro_batch", 2)
    assert torch.equal(sharded["weights"], unmeasured["weights"])
    assert [entry["step"] for entry in sharded["log"] if "eval_scatter_ratio" in entry] == [0, 2, 4, 5]


def test_the_metric_of_two_ranks_is_that_of_all_rows(results):
    rows = torch.stack([row["x"] for row in tiny.vectors(30)])
    assert results("metric", 2, 0) == pytest.approx(compactness(rows, torch.arange(30) % tiny.NUM_LABELS))
    assert results("metric", 2, 1) is None


def test_one_process_gathers_nothing():
    rows = torch.ones(2, 2)
    assert gather_rows(rows) is rows
    assert sum_over_ranks(rows) is rows
