"""What a run is worth: metrics as sums over examples, and baselines that need no model of ours."""
