"""Settings of all tests."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
if "ITRA_TESTS_SEE_GPUS" not in os.environ:  # these tests mean the CPU; test_gpu.py runs the others
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import datasets
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("itra", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("itra")


@pytest.fixture(autouse=True)
def cache_of_datasets(tmp_path, monkeypatch):
    """What `load_dataset` caches stays in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(autouse=True, scope="module")
def little_to_collect():
    """Each run of Trainer collects garbage: a quarter of a second over all that is imported, unless it is frozen."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
