"""Pure functions and Flax modules; knows nothing of data or training."""
