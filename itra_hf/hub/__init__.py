"""What leaves a run: checkpoints, the model card and pushes."""
