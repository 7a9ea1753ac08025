"""The training step, the loop, checkpoints and metrics; independent of models and data."""
