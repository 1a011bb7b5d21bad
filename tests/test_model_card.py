"""What the model card says of the matching."""

import tiny
from huggingface_hub import ModelCard, metadata_load

from itra_hf.config import MatchingArguments


def test_the_card_names_the_options_and_is_tagged(tmp_path):
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), matching_weight=0.25)
    run.train()
    for _ in range(2):  # written twice, the section stands once
        run.create_model_card(tags=["text"])
    card = ModelCard.load(tmp_path / "README.md")
    assert "| matching_weight | 0.25 |" in card.text
    assert card.text.count("## In-Training Representation Alignment") == 1
    assert all(f"| {name} |" in card.text for name in MatchingArguments.__dataclass_fields__)
    assert {"itra", "text", "generated_from_trainer"} <= set(metadata_load(tmp_path / "README.md")["tags"])
    assert "10.1609/aaai.v37i7.26044" in card.text
    assert str(tmp_path) not in card.text
    assert "](https://huggingface.co/)" not in card.text
    assert "This model is trained from scratch" in card.text
