"""What type checkers say of a user's script."""

from pathlib import Path

from mypy import api

PACKAGE = Path(__file__).parent.parent / "itra_hf"
SCRIPT = """
from itra_hf import ITRAConfig, ITRATrainer

for layer in (-1, ".head"):
    ITRAConfig("out", feature_layer=layer)
ITRAConfig("out", feature_layer=0.5)
ITRATrainer(train_dataset=[], matching_loss=None)
ITRATrainer(train_datset=[])
"""


def test_a_layer_may_be_a_number_and_a_misspelt_keyword_is_reported(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    sources = [str(PACKAGE / name) for name in ("__init__.py", "config.py", "trainer.py")]
    options = ["--config-file=", "--follow-imports=skip", "--ignore-missing-imports", "--cache-dir", str(tmp_path)]
    said = [line for line in api.run([*options, str(script), *sources])[0].splitlines() if line.startswith(str(script))]
    assert [line.split(":")[1] for line in said if ": error:" in line] == ["6", "8"]
    assert 'expected "int | str"' in said[0]
    assert 'Unexpected keyword argument "train_datset" for "ITRATrainer"' in said[1]
