"""Pure functions and Flax modules; independent of data and training."""
