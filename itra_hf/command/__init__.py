"""The command `itra-hf`: a user's data and model, trained, compared and reported."""
