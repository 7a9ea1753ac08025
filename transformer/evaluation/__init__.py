"""Evaluation of a run: metrics as sums over examples, and simple baselines."""
