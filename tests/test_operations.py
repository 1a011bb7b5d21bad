"""What a step adds to Trainer's in operations, which are the same on every machine."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

SPEC = spec_from_file_location("operations", Path(__file__).parents[1] / "benchmarks" / "operations.py")
operations = module_from_spec(SPEC)
SPEC.loader.exec_module(operations)


@pytest.mark.parametrize(("setting", "most"), zip(operations.SETTINGS, operations.MARKS, strict=True))
def test_a_step_adds_few_operations(setting, most):
    rows, options = operations.SETTINGS[setting]
    assert operations.added(rows, **options) <= most


def test_views_are_not_counted():
    with operations.Operations() as counted:
        x = torch.ones(2, 3)
        (x.view(6) + x.T.reshape(6)).detach()
    assert counted.counts == {"aten::ones": 1, "aten::clone": 1, "aten::add": 1}
