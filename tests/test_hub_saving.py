"""Trainer's private methods that we override: nothing public serves, so this shouts when one is renamed."""

import ast
import inspect

from transformers import Trainer

from itra_hf import trainer
from itra_hf.hub import saving


def test_the_private_methods_that_we_extend_are_still_trainers():
    extended = {
        node.attr
        for module in (saving, trainer)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "super()" and node.attr.startswith("_")
    }
    assert {"_save_checkpoint", "_get_train_sampler"} < extended
    for name in extended - {"__init__"}:
        assert name in vars(Trainer), f"Trainer has no {name} any more: see who calls what in its place"
