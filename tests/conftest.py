"""Settings of all tests."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("itra", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("itra")
